"""Minibatch couplings: exact against scipy, near against their tolerance, and what they must never do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from lcm_jax.diffusion.coupling import OptimalTransport, auction, exact, independent


def draw(b, d=8, seed=0):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.standard_normal((b, d)), jnp.float32) for _ in range(2))


def cost(x, n):
    return float(jnp.square(x - n).sum())


def best(x, n):
    product = np.asarray(x @ n.T, np.float64)
    return cost(x, n[linear_sum_assignment(-product)[1]])


def test_independent_keeps_the_noise():
    x, n = draw(4)
    kept, metrics = independent(x, n)
    np.testing.assert_array_equal(kept, n)
    assert metrics == {}


@pytest.mark.parametrize("b", [1, 2, 7, 64])
def test_exact_coupling_is_the_assignment_of_least_cost(b):
    x, n = draw(b)
    coupled, metrics = jax.jit(OptimalTransport())(x, n)
    assert cost(x, coupled) == pytest.approx(best(x, n), rel=1e-5)
    assert sorted(map(tuple, coupled.tolist())) == sorted(map(tuple, n.tolist()))  # the same noise, reordered
    assert float(metrics["transport_gain/mean"]) == pytest.approx(1 - best(x, n) / cost(x, n), abs=1e-5)


@pytest.mark.parametrize("tolerance", [0.5, 1e-2, 1e-4])
@pytest.mark.parametrize("b", [1, 2, 65, 200])
def test_auction_is_within_its_tolerance(b, tolerance):
    x, n = draw(b, seed=1)
    product = np.asarray(x @ n.T)
    order = np.asarray(jax.jit(auction, static_argnums=1)(jnp.asarray(product), tolerance))
    assert sorted(order) == list(range(b))
    rows = np.arange(b)
    short = product[rows, linear_sum_assignment(-product)[1]].sum() - product[rows, order].sum()
    assert short <= b * tolerance * np.ptp(product) * 1.01 + 1e-3
    large = OptimalTransport(exact_up_to=0, tolerance=tolerance)(x, n)[0]
    assert cost(x, large) <= cost(x, n) + 1e-3


def test_auction_of_equal_products_ends():
    assert sorted(auction(jnp.zeros((6, 6)), 1e-3).tolist()) == list(range(6))
    assert exact(jnp.diag(jnp.arange(1.0, 5.0))).tolist() == [0, 1, 2, 3]


def test_parts_are_coupled_each_for_itself():
    x, n = draw(24)
    coupled = OptimalTransport(parts=3)(x, n)[0]
    apart = [OptimalTransport()(x[i : i + 8], n[i : i + 8])[0] for i in (0, 8, 16)]
    np.testing.assert_array_equal(coupled, jnp.concatenate(apart))
    whole = OptimalTransport()(x, n)[0]
    assert cost(x, whole) < cost(x, coupled) < cost(x, n)
    with pytest.raises(ValueError, match="batch of 24 does not split into 5 equal parts"):
        OptimalTransport(parts=5)(x, n)


def test_one_device_and_eight_couple_alike():
    x, n = draw(32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    couple = jax.jit(OptimalTransport())
    alone = couple(x, n)[0]
    spread = couple(jax.device_put(x, split), jax.device_put(n, split))[0]
    np.testing.assert_array_equal(alone, spread)


def test_as_many_parts_as_devices_couple_what_each_device_holds():
    x, n = draw(32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("data")
    own = lambda x, n: OptimalTransport()(x, n)[0]
    apart = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=split, out_specs=split, check_vma=False))(x, n)
    spread = [jax.device_put(v, jax.sharding.NamedSharding(mesh, split)) for v in (x, n)]
    parts = jax.jit(OptimalTransport(parts=8))(*spread)[0]
    np.testing.assert_array_equal(parts, apart)
    for i in range(0, 32, 4):  # noise stays on its device
        assert sorted(map(tuple, parts[i : i + 4].tolist())) == sorted(map(tuple, n[i : i + 4].tolist()))
    assert cost(x, parts) > cost(x, jax.jit(OptimalTransport())(x, n)[0])


@pytest.mark.parametrize("exact_up_to", [0, 512])
def test_a_cost_that_is_not_finite_gives_noise_that_is_not(exact_up_to):
    """So that the loss stops the run, instead of a search that never ends."""
    x, n = draw(6)
    coupled, _ = OptimalTransport(exact_up_to=exact_up_to)(x.at[2, 1].set(jnp.nan), n)
    assert jnp.isnan(coupled).all()


@pytest.mark.parametrize(
    "settings, message", [({"parts": 0}, "parts is 0"), ({"tolerance": 0.0}, "tolerance is 0.0: give a positive")]
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        OptimalTransport(**settings)


@pytest.mark.parametrize("platform, search", [("cpu", 2048), ("cuda", 0), ("tpu", 0)])
def test_what_couples_is_what_is_faster_on_the_platform_compiled_for(platform, search):
    shapes = (jax.ShapeDtypeStruct((65, 8), jnp.float32),) * 2
    program = lambda couple: jax.jit(couple).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    loops = lambda text: text.count("stablehlo.while")
    assert loops(program(OptimalTransport(exact_up_to=2048))) != loops(program(OptimalTransport(exact_up_to=0)))
    assert loops(program(OptimalTransport())) == loops(program(OptimalTransport(exact_up_to=search)))
