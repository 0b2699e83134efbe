"""Distances, the robust scale and the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian import latents

from lcm_jax.diffusion import distance, weight
from lcm_jax.diffusion.path import VE, output_of, vp_path

ROBUST = {"huber": distance.huber, "pseudo_huber": distance.pseudo_huber, "cauchy": distance.cauchy,
          "geman_mcclure": distance.geman_mcclure}  # fmt: skip
GOLDEN = {  # at RMS .01, .1, 1 and delta .03456
    "cauchy": (0.0410097, 1.646006, 6.039355),
    "pseudo_huber": (0.00141768, 0.0712436, 0.966037),
    "geman_mcclure": (0.041004, 1.353403, 1.990490),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_values(name):
    b = latents((3, 2, 2, 3))
    sign = jnp.sign(latents((3, 2, 2, 3), seed=1))
    a = b + sign * jnp.array([0.01, 0.1, 1])[:, None, None, None]
    got = distance.get(name)(a, b, delta=0.03456, reduction="mean")
    np.testing.assert_allclose(got, GOLDEN[name], rtol=2e-5)


def test_plain_distances_and_their_reductions():
    a, b = latents(), latents(seed=1)
    gap = np.asarray(a - b).reshape(4, -1)
    np.testing.assert_allclose(distance.l2(a, b), (gap**2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(distance.l2(a, b, reduction="sum"), (gap**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(distance.l1(a, b), np.abs(gap).mean(1), rtol=1e-5)
    huber = np.sqrt(gap**2 + 0.25) - 0.5
    np.testing.assert_allclose(distance.huber(a, b, delta=0.5, reduction="sum"), huber.sum(1), rtol=1e-5)
    whole = np.sqrt((gap**2).sum(1) + 0.25) - 0.5
    np.testing.assert_allclose(distance.pseudo_huber(a, b, delta=0.5), whole, rtol=1e-5)


def test_small_residuals_are_quadratic():
    b = latents()
    a, delta = b + 1e-3, 0.5
    for name in ("cauchy", "geman_mcclure"):
        expected = distance.l2(a, b) / (2 * delta**2)
        np.testing.assert_allclose(distance.get(name)(a, b, delta=delta), expected, rtol=1e-4)
    for name in ("huber", "pseudo_huber"):
        got = distance.get(name)(a, b, delta=delta, reduction="mean")
        np.testing.assert_allclose(got, distance.l2(a, b) / (2 * delta), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", ["l2", "l1", *ROBUST])
def test_value_and_slope_at_equality(name, dtype):
    b = latents().astype(dtype)
    d = distance.get(name) if name in ("l1", "l2") else lambda a, b: ROBUST[name](a, b, delta=1e-3)
    np.testing.assert_array_equal(d(b, b), 0)
    assert d(b, b).dtype == jnp.float32
    assert np.all(np.isfinite(jax.grad(lambda a: d(a, b).sum())(b)))


def test_ect_distance_is_the_norm_with_finite_slope():
    a, b = latents(), latents(seed=1)
    d = lambda a: distance.pseudo_huber(a, b, delta=0.0)  # noqa: E731
    np.testing.assert_allclose(d(a), jnp.linalg.norm((a - b).reshape(4, -1), axis=1), rtol=1e-5)
    np.testing.assert_array_equal(jax.grad(lambda a: d(a).sum())(b), 0)


def test_scheduled_scale():
    N = np.array([10, 20, 40, 80, 160, 320, 640])
    expected = [0.03456, 0.013635, 0.0061444, 0.0027688, 0.0012477, 0.00056225, 0.00025336]
    got = [jax.jit(distance.scheduled_delta)(n) for n in N]
    np.testing.assert_allclose(got, expected, rtol=5e-5)
    assert distance.scheduled_delta(8, first=0.05, until=8) == pytest.approx(0.05)
    assert distance.dimension_delta(4096) == pytest.approx(0.03456)
    np.testing.assert_allclose(distance.dimension_delta(3072), 0.0299, rtol=2e-3)


def test_pair_weights():
    t, s = jnp.array([45.31373, 0.01672075]), jnp.array([24.40834, 0.002])
    np.testing.assert_array_equal(weight.uniform(t, s), 1)
    np.testing.assert_allclose(weight.inverse_step(t, s), [0.047835, 67.93131], rtol=1e-4)
    np.testing.assert_allclose(weight.karras(t, s), (t**2 + 0.25) / (t * 0.5) ** 2, rtol=1e-5)
    assert weight.uniform(jnp.array([999]), jnp.array([979])).dtype == jnp.float32


def test_root_snr_makes_an_error_of_x0_that_of_eps():
    path, t = vp_path(zero_terminal_snr=True), jnp.array([99, 499, 999])
    z0, eps, error = 0.3, -1.2, 0.01
    z = path.alpha(t) * z0 + path.sigma(t) * eps
    moved = eps - (z - path.alpha(t) * (z0 + error)) / path.sigma(t)  # of eps, at an x0 that is `error` too large
    found = weight.root_snr(path, t, t - 20)
    np.testing.assert_allclose(found[:2] * error, moved[:2], rtol=1e-3)
    assert found[2] == np.float32(0.1) and weight.root_snr(path, t, t, least=1.0)[1] == 1


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_min_snr_weighs_the_same_x0_error(kind):
    """Whatever the network predicts, weight * |error|^2 is one number."""
    path, t = vp_path(), jnp.array([50, 300, 600, 999])
    z0, eps, off = latents(), latents(seed=1), latents(seed=2)
    alpha, sigma = (r(t)[:, None, None, None] for r in (path.alpha, path.sigma))
    error = output_of(path, kind, z0, eps, t) - output_of(path, kind, z0 + off, eps - alpha / sigma * off, t)
    on_x0 = weight.min_snr(path, "x0", t)[:, None, None, None] * off**2
    np.testing.assert_allclose(weight.min_snr(path, kind, t)[:, None, None, None] * error**2, on_x0, rtol=2e-3)


def test_min_snr_cuts_where_it_says():
    path, t = vp_path(), jnp.array([50, 999])
    snr = (path.alpha(t) / path.sigma(t)) ** 2
    np.testing.assert_allclose(weight.min_snr(path, "x0", t), [5, snr[1]], rtol=1e-5)
    np.testing.assert_allclose(weight.min_snr(path, "eps", t, gamma=2.0), [2 / snr[0], 1], rtol=1e-5)



@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: distance.get("l3"), "unknown distance 'l3'; choose one of l2, l1, huber"),
        (lambda: distance.l2(latents(), latents(), reduction="max"), "choose mean or sum"),
        (lambda: weight.get("snr", 0.5), "unknown weight 'snr'; choose one of uniform"),
        (lambda: weight.min_snr(VE(), "u", jnp.array([1.0])), "unknown prediction kind 'u'"),
    ],
)
def test_errors_name_the_choices(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_lookups_find_what_they_list():
    t, s = jnp.array([0.1, 1.0, 80.0]), jnp.array([0.05, 0.9, 79.0])
    for name, law in weight.WEIGHTS.items():
        np.testing.assert_array_equal(weight.get(name, 0.5)(t, s), law(t, s))
    np.testing.assert_allclose(weight.get("karras", 1.0)(t, s), 1 / t**2 + 1, rtol=1e-6)
    assert [distance.get(name).__name__ for name in distance.DISTANCES] == list(distance.DISTANCES)
