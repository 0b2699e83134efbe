"""The consistency loss: against exact truth, against Algorithm 1 written again in numpy, and at its edges."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import KEY, STEP, At, Recorder, batch, get, nets, weights
from gaussian import Gaussian

from lcm_jax.diffusion.guidance import guidance_embedding
from lcm_jax.diffusion.path import diffuse, divide, expand, vp_path
from lcm_jax.objectives import lcd, lcf
from lcm_jax.objectives.base import Nets

PATH = vp_path()


def test_algorithm_1_in_numpy():
    """LCD at fixed draws, eps prediction: guided DDIM from t to s in LCM's own form, Huber, float64."""
    t, s, w, delta, data = 519, 499, 5.0, 1e-3, batch(std=0.0)
    eps = jax.random.normal(jax.random.key(9), data["mean"].shape)
    student, target, teacher = weights(0), weights(1), weights(2)
    objective = replace(
        lcd.build(PATH, "eps", w_min=w, w_max=w, w_width=8), pair=At(t, s), couple=lambda z0, drawn: (eps, {})
    )
    ours = objective.loss(nets(student, target, teacher), data, KEY, STEP)[0]

    f8 = lambda x: np.asarray(x, np.float64)
    bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    angle = 1000 * w * 10_000.0 ** (-np.arange(4) / 3)
    features = np.concatenate([np.sin(angle), np.cos(angle)])
    noise, z0 = f8(eps), f8(data["mean"]) * 0.5

    def net(p, z, t, context, w_features=None):
        out = p[0] * z + p[1] * t / 1000 * np.sin(z) + p[2] * context.mean((1, 2))[:, None, None, None]
        return out if w_features is None else out + p[3] * w_features[0]

    def f(p, z, t):
        predicted = net(f8(p), z, t, f8(data["context"]), features)
        skip = 0.25 / ((10 * t) ** 2 + 0.25)
        out = 10 * t / np.sqrt((10 * t) ** 2 + 0.25)
        return skip * z + out * (z - np.sqrt(1 - bar[t]) * predicted) / np.sqrt(bar[t])

    def psi(z, context):  # the increment of DDIM (LCM eq. 18)
        rate = np.sqrt(bar[s] / bar[t])
        turn = np.sqrt((1 - bar[t]) / (1 - bar[s])) * rate - 1
        return rate * z - np.sqrt(1 - bar[s]) * turn * net(f8(teacher), z, t, context) - z

    z_t = np.sqrt(bar[t]) * z0 + np.sqrt(1 - bar[t]) * noise
    empty = np.zeros_like(f8(data["context"]))
    z_s = z_t + (1 + w) * psi(z_t, f8(data["context"])) - w * psi(z_t, empty)
    residual = f(student, z_t, t) - f(target, z_s, s)
    theirs = (np.sqrt(residual**2 + delta**2) - delta).mean()
    assert float(ours) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("method", [lcd, lcf])
def test_weights_by_name(method):
    """At one time the loss is the uniform one times alpha / sigma; a name that is none is an error."""
    found, three = [], nets(weights(0), weights(1), weights(2))
    for name in ("uniform", "root_snr"):
        objective = replace(method.build(PATH, "eps", w_width=8, weight_name=name), pair=At(99, 79))
        found.append(objective.loss(three, batch(), KEY, STEP)[0])
    t = jnp.array([99])
    assert found[1] / found[0] == pytest.approx(float((PATH.alpha(t) / PATH.sigma(t))[0]), rel=1e-5)
    with pytest.raises(ValueError, match="unknown weight 'snr'; choose uniform"):
        method.build(PATH, "eps", weight_name="snr")


def exact_nets(path, truth):
    """A student whose f carries along the flow to t = 0, and the teacher whose flow it is (both x0)."""
    boundary = lcd.LCMBoundary()

    def student(z, t, context, w_features):
        on_z, on_x0 = boundary.mix(path, t)
        end = truth.flow(path, z, t, jnp.zeros_like(t))
        return divide(end - expand(on_z, z) * z, expand(on_x0, z))

    return Nets(student, student, lambda z, t, context: truth.field(path)(z, t).x0)


@pytest.mark.parametrize("name, order", [("ddim", 1), ("dpm_solver", 2), ("dpm_solver_pp", 2)])
def test_the_exact_consistency_function_has_no_loss_but_the_solver_s(name, order):
    """A step's error is skip^(order + 1), so the squared loss falls like skip^(2 order + 2)."""
    truth, losses = Gaussian(), []
    with jax.enable_x64(True):
        data = {
            "mean": jnp.full((64, 4), truth.mean),
            "std": jnp.full((64, 4), truth.std),
            "context": jnp.zeros((64, 1, 1)),
            "uncond": {"context": jnp.zeros((1, 1))},
            "scale": 1.0,
        }
        for skip in (32, 16, 8):
            objective = lcd.build(PATH, "x0", solver_name=name, distance_name="l2", w_min=0.0, w_max=0.0)
            objective = replace(objective, pair=At(600, 600 - skip))
            losses.append(float(objective.loss(exact_nets(PATH, truth), data, KEY, STEP)[0]))
    assert losses[0] < 1e-4
    rates = np.log2(np.array(losses[:-1]) / losses[1:])
    np.testing.assert_allclose(rates, 2 * order + 2, atol=0.5)


def test_at_the_last_interval_the_target_is_the_sample_itself():
    """s = 0 is the boundary: whatever the network says, f(z, 0) = z."""
    objective = replace(lcf.build(PATH, "v", distance_name="l2"), pair=At(20, 0))
    data, student = batch(), weights()
    a, b = (objective.loss(nets(student, weights(seed)), data, KEY, STEP)[0] for seed in (1, 2))
    assert a == b
    free = replace(objective, pair=At(40, 20))
    a, b = (free.loss(nets(student, weights(seed)), data, KEY, STEP)[0] for seed in (1, 2))
    assert a != b


def test_fine_tuning_lands_on_the_point_of_shared_noise():
    """The oracle's DDIM step from z_t is z_s of the same z0 and eps (LCM Alg. 4)."""
    data, student, target = batch(std=0.0), Recorder(), Recorder()
    _, metrics = lcf.build(PATH, "v").loss(Nets(student, target), data, KEY, STEP)
    (z_t, t, *_), (z_s, s, *_) = student.calls[0], target.calls[0]
    np.testing.assert_array_equal(t - s, 20)
    np.testing.assert_array_equal(t, metrics["sample/t"])
    z0 = data["mean"] * data["scale"]
    eps = (z_t - expand(PATH.alpha(t), z0) * z0) / expand(PATH.sigma(t), z0)
    np.testing.assert_allclose(z_s, diffuse(PATH, z0, eps, s), atol=1e-5)


def test_guidance_is_drawn_in_its_range_and_told_to_student_and_target_alone():
    data = batch(b=64)
    student, target, teacher = Recorder(), Recorder(), Recorder()
    objective = lcd.build(PATH, "v", w_min=3.0, w_max=4.0, w_width=16)
    _, metrics = objective.loss(Nets(student, target, teacher), data, KEY, STEP)
    w = metrics["sample/w"]
    assert 3.0 <= w.min() < 3.2 and 3.8 < w.max() <= 4.0
    for net in (student, target):
        np.testing.assert_array_equal(net.calls[0][3], guidance_embedding(w, 16))
        np.testing.assert_array_equal(net.calls[0][2], data["context"])
    (z, t, context), *more = teacher.calls
    assert not more and len(z) == 2 * 64  # with and without caption, in one call
    np.testing.assert_array_equal(context[::2], data["context"])
    assert not context[1::2].any()


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", ["lcd", "lcf", "diffusion"])
def test_captions_are_dropped_at_the_share_asked_for(name, drop):
    data = batch(b=400)
    data["uncond"] = {"context": jnp.full((2, 3), 9.0)}
    net = Recorder()
    get(name, path=PATH, kind="v", drop=drop).loss(Nets(net, net, net), data, KEY, STEP)
    seen = next(call[2] for call in net.calls if len(call[0]) == 400)
    assert float((seen == 9.0).all((1, 2)).mean()) == pytest.approx(drop, abs=0.07 if 0 < drop < 1 else 0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("t, s", [(20, 0), (1, 0), (999, 979), (999, 0)])
@pytest.mark.parametrize("build", [lcd.build, lcf.build])
def test_gradients_are_finite_at_both_ends_of_time(build, t, s, dtype):
    path = vp_path(zero_terminal_snr=True)
    objective = replace(build(path, "v"), pair=At(t, s))
    data = batch(dtype=dtype)
    loss = lambda p: objective.loss(nets(p, p, p), data, KEY, STEP)[0]
    value, grad = jax.value_and_grad(loss)(weights(0, dtype))
    assert jnp.isfinite(value) and jnp.isfinite(grad.astype(jnp.float32)).all()


def test_the_gradient_is_zero_where_student_and_target_agree():
    """Huber is flat at zero, not 0/0."""
    objective = replace(lcf.build(PATH, "v"), pair=At(20, 20))
    p = weights()
    value, grad = jax.value_and_grad(lambda q: objective.loss(nets(q, p), batch(), KEY, STEP)[0])(p)
    assert value < 1e-9 and jnp.abs(grad).max() < 1e-3
