"""The gated GELU's own gradient: that of the formula, with less kept for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.models.attention import gated


def plain(x):
    h, gate = jnp.split(x, 2, axis=-1)
    return h * jax.nn.gelu(gate, approximate=False)


def both(function, x, by_out):
    out, gradient = jax.vjp(function, x)
    return out, gradient(by_out)[0]


def drawn(dtype, width=64):
    rng = np.random.default_rng(0)
    return (jnp.asarray(4 * rng.standard_normal((2, 9, n)), dtype) for n in (2 * width, width))


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-14), ("float32", 1e-6)])
def test_value_and_gradient_are_those_of_the_formula(dtype, tolerance):
    with jax.enable_x64(True):
        x, by_out = drawn(dtype)
        for got, wanted in zip(jax.jit(both, static_argnums=0)(gated, x, by_out), both(plain, x, by_out), strict=True):
            assert got.dtype == dtype
            np.testing.assert_allclose(got, wanted, atol=tolerance * float(jnp.abs(wanted).max()))


def test_half_precision_is_right_to_its_last_digit():
    x, by_out = drawn("bfloat16")
    got = both(gated, x, by_out)[1]
    wanted = both(plain, x.astype(jnp.float32), by_out.astype(jnp.float32))[1]
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=2**-7, atol=1e-5)


def test_less_is_kept():
    weight = jax.ShapeDtypeStruct((64, 2 * 4096), jnp.float32)
    x = jax.ShapeDtypeStruct((256, 64), jnp.float32)

    def held(function):
        def loss(w, x):
            for _ in range(4):  # what is kept of each stands in memory until the way back
                x = x + jnp.tanh(function((x @ w)[None])[0][:, :64])
            return x.sum()

        return jax.jit(jax.grad(loss)).lower(weight, x).compile().memory_analysis().temp_size_in_bytes

    assert held(gated) < 0.9 * held(plain)  # how much less is the compiler's
