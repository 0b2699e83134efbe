"""What every objective in the folder must do; a new file is tested by being there."""

import inspect
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import KEY, STEP, batch, get, nets, weights

from lcm_jax.diffusion.path import vp_path
from lcm_jax.objectives.base import Uniform, draw_latent, drop_captions, names

LCM = {"path": vp_path(), "kind": "v"}
NEEDED = {**LCM, "steps": 100, "stage_steps": 10}


def settings_of(name):
    return inspect.signature(import_module(f"lcm_jax.objectives.{name}").build).parameters


def built(name, **settings):
    return get(name, **{k: v for k, v in NEEDED.items() if k in settings_of(name)}, **settings)


def loss_of(objective, batch):
    def loss(student, target, teacher, key):
        return objective.loss(nets(student, target, teacher if objective.needs_teacher else None), batch, key, STEP)

    return loss


def test_the_folder_is_the_list():
    assert {"diffusion", "lcd", "lcf", "autoencoder", "cd", "ct", "ict", "slct", "ect", "edm"} <= set(names())


@pytest.mark.parametrize("name", names())
def test_loss_and_gradient(name):
    """Finite, moved by the student alone, the same for the same key and another for another."""
    objective = built(name)
    loss = jax.jit(jax.value_and_grad(loss_of(objective, batch()), argnums=(0, 1, 2), has_aux=True))
    (value, metrics), (student, target, teacher) = loss(weights(0), weights(1), weights(2), KEY)
    assert value.shape == () and jnp.isfinite(value) and value > 0
    assert metrics["loss/mean"] == value
    assert all(k.split("/")[0] == "sample" or v.shape == () for k, v in metrics.items())
    assert all(v.shape == (6,) for k, v in metrics.items() if k.startswith("sample/"))
    assert jnp.isfinite(student).all() and jnp.abs(student).max() > 0
    assert not target.any() and not teacher.any()
    assert loss(weights(0), weights(1), weights(2), KEY)[0][0] == value
    assert loss(weights(0), weights(1), weights(2), jax.random.key(6))[0][0] != value


@pytest.mark.parametrize("name", names())
def test_what_it_declares(name):
    objective = built(name)
    mu = objective.mu(jnp.asarray(50)) if callable(objective.mu) else objective.mu
    assert mu is None or 0 <= mu < 1
    assert isinstance(objective.needs_teacher, bool)
    assert hash(type(objective)) and objective.__dataclass_params__.frozen


@pytest.mark.parametrize("name", [n for n in names() if n != "autoencoder"])
def test_half_precision_latents_give_finite_gradients(name):
    data = batch(dtype=jnp.bfloat16)
    grad = jax.grad(lambda p: loss_of(built(name), data)(p, p, p, KEY)[0])(weights(0, jnp.bfloat16))
    assert jnp.isfinite(grad.astype(jnp.float32)).all() and grad.any()


def test_unknown_names_and_settings_are_met_with_the_choice():
    with pytest.raises(ValueError, match="unknown objective 'ldc'; there are: .*diffusion.*lcd"):
        get("ldc")
    with pytest.raises(ValueError, match="config.objective has no key 'skipp'; did you mean 'skip'?"):
        get("lcd", skipp=3, **LCM)
    with pytest.raises(ValueError, match="config.objective lacks kind"):
        get("lcd", path=vp_path())
    with pytest.raises(ValueError, match="unknown grid 'all'; choose any .* or fixed"):
        get("lcd", grid="all", **LCM)
    with pytest.raises(ValueError, match="skip 300 does not divide T = 1000"):
        get("lcd", grid="fixed", skip=300, **LCM)
    for grid in ("any", "fixed"):
        with pytest.raises(ValueError, match="skip must .* got 0"):
            get("lcd", grid=grid, skip=0, **LCM)
    with pytest.raises(ValueError, match="unknown solver 'rk4'; choose one of ddim"):
        get("lcd", solver_name="rk4", **LCM)
    with pytest.raises(ValueError, match="unknown distance 'l3'; choose one of l2"):
        get("lcf", distance_name="l3", **LCM)
    with pytest.raises(ValueError, match=r"from low to high, got \[5.0, 2.0\]"):
        get("lcd", w_min=5.0, w_max=2.0, **LCM)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        get("diffusion", path=vp_path(zero_terminal_snr=True), kind="eps")
    assert Uniform(2.0, 2.0).low == 2.0
    for name, settings, message in [
        ("ct", {"mu0": 1.0}, "mu0 is 1.0: give the target's first decay"),
        ("ct", {"s0": 0}, "1 <= s0 <= s1, got s0=0"),
        ("cd", {"intervals": 0, "steps": None}, "at least 1 interval, got N=0"),
        ("ict", {"curriculum": "tripling"}, "unknown curriculum 'tripling'; choose one of doubling, geometric"),
        ("slct", {"delta": 0.001}, "delta is 0.001 up to 10 intervals and 0.0271 above"),
        ("slct", {"schedule_delta": False, "delta": -1.0}, "delta is -1.0: give a scale of at least 0"),
        ("slct", {"transport_parts": 0}, "parts is 0"),
        ("slct", {"diffusion_share": 1.5}, "share is 1.5"),
        ("slct", {"diffusion_weight": -1.0}, "weight is -1.0"),
        ("ect", {"stage_steps": 10, "steps": None, "q": 1.0}, "q is 1.0"),
        ("ect", {"stage_steps": 0, "steps": None}, "stage_steps is 0: give how many updates"),
        ("ect", {"stage_steps": 10, "steps": None, "P_std": 0.0}, "P_std is 0.0: give the spread"),
        ("cd", {"distance_name": "geman_mcclure", "steps": None}, "delta is 0.0: geman_mcclure divides by its scale"),
        ("ct", {"distance_name": "cauchy"}, "delta is 0.0: cauchy divides by its scale, give one above 0"),
        ("edm", {"steps": None, "P_std": -1.0}, "P_std is -1.0"),
        ("ict", {"P_std": 0.0}, "P_std is 0.0"),
        ("slct", {"sigma_min": 0.0}, "sigma_min is 0.0: give the grid's lowest noise level"),
        ("ct", {"sigma_min": -0.1}, "sigma_min is -0.1"),
        ("cd", {"sigma_max": 0.001, "steps": None}, "sigma_max is 0.001: give more than sigma_min, which is 0.002"),
        ("ict", {"sigma_max": float("nan")}, "sigma_max is nan"),
        ("slct", {"rho": 0.0}, "rho is 0.0: give a positive number, as 7 is"),
    ]:
        given = {k: v for k, v in {"steps": 100, **settings}.items() if v is not None}
        with pytest.raises(ValueError, match=message):
            get(name, **given)


@pytest.mark.parametrize("name", [n for n in names() if "sigma_data" in settings_of(n)])
def test_scales_of_noise_levels_are_positive(name):
    for setting in ("sigma_data", "time_scale"):
        for value in (0.0, -0.5):
            with pytest.raises(ValueError, match=f"{setting} is {value}: give .*, above 0, as"):
                built(name, **{setting: value})


def test_the_weight_of_ect_knows_the_std_of_the_data():
    t = jnp.array([0.1, 1.0, 80.0])
    found = get("ect", stage_steps=10, weight_name="karras", sigma_data=1.0).weight(t, t / 2)
    np.testing.assert_allclose(found, 1 / t**2 + 1, rtol=1e-6)


def test_a_latent_is_drawn_from_its_posterior_and_scaled():
    data = {"mean": jnp.full((2000, 3), 2.0), "std": jnp.full((2000, 3), 0.5), "scale": 0.1}
    z = draw_latent(data, KEY)
    np.testing.assert_allclose((z.mean(), z.std()), (0.2, 0.05), rtol=0.03)
    z = draw_latent({**data, "shift": jnp.full(3, 2.0), "scale": jnp.full(3, 0.5 / 0.5)}, KEY)
    np.testing.assert_allclose((z.mean(), z.std()), (0.0, 0.5), rtol=0.03, atol=0.02)


def test_dropped_captions_become_the_empty_one():
    told = {"context": jnp.ones((3, 2, 4)), "pooled": jnp.ones((3, 5)), "time_ids": jnp.full((3, 6), 64)}
    uncond = {"context": jnp.full((2, 4), 7.0), "pooled": jnp.zeros(5)}
    out = drop_captions(told, uncond, jnp.array([False, True, False]))
    np.testing.assert_array_equal(out["context"][:, 0, 0], [1, 7, 1])
    np.testing.assert_array_equal(out["pooled"][:, 0], [1, 0, 1])
    np.testing.assert_array_equal(out["time_ids"], told["time_ids"])  # the empty caption is of the same picture
