"""Tiles against the whole image: maps that see no neighbours must not show where a tile ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.layers import double
from lcm_jax.models.tiling import tiled


def image(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def halve(x):
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean((2, 4))


@pytest.mark.parametrize("apply", [jnp.tanh, lambda x: double(x) ** 2, halve], ids=["same", "twice", "half"])
@pytest.mark.parametrize("tile, overlap", [(8, 2), (8, 0), ((8, 12), 4), (6, 4), (20, 4)])
@pytest.mark.parametrize("shape", [(2, 24, 16, 3), (1, 22, 30, 1), (1, 8, 34, 2)])
def test_a_map_of_single_pixels_has_no_seams(apply, tile, overlap, shape):
    x = image(*shape)
    np.testing.assert_allclose(jax.jit(lambda x: tiled(apply, x, tile, overlap))(x), apply(x), atol=1e-6)


def test_an_image_no_larger_than_a_tile_goes_through_whole():
    called = []
    x = image(1, 8, 6, 1)
    tiled(lambda x: called.append(x.shape) or x, x, 8, 2)
    assert called == [(1, 8, 6, 1)]


def test_tiles_that_differ_are_blended_along_a_straight_line():
    """Each tile is told apart by its own mean; between two of them the output moves in equal steps."""
    x = jnp.concatenate([jnp.zeros((1, 6, 8, 1)), jnp.ones((1, 6, 8, 1))], axis=2)
    out = tiled(lambda x: jnp.broadcast_to(x.mean((1, 2), keepdims=True), x.shape), x, (6, 10), 4)[0, 0, :, 0]
    low, high = float(x[0, 0, :10, 0].mean()), float(x[0, 0, 6:, 0].mean())
    np.testing.assert_allclose(out[:6], low, atol=1e-6)
    np.testing.assert_allclose(out[10:], high, atol=1e-6)
    np.testing.assert_allclose(out[6:10], low + (high - low) * np.array([0.125, 0.375, 0.625, 0.875]), atol=1e-6)


def test_half_precision_is_summed_in_float32_and_given_back():
    x = image(1, 32, 32, 2).astype(jnp.bfloat16)
    out = tiled(lambda x: x, x, 12, 8)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("method, size, tile", [("encode", 96, 48), ("decode", 24, 12)])
def test_a_convolutional_autoencoder_differs_only_near_the_ends_of_tiles(method, size, tile):
    net = autoencoder(TinyAutoencoderConfig(width=8, encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)))
    params = net.init(jax.random.key(0))
    apply = lambda x: net.apply(params, x, method=method)
    x = image(1, size, size, 3 if method == "encode" else 4)
    whole, parts = apply(x), tiled(apply, x, tile, tile // 2)
    assert whole.shape == parts.shape
    away = np.asarray(jnp.abs(whole - parts).max((0, 3)))
    scale = float(jnp.abs(whole).max())
    assert np.quantile(away, 0.1) < 1e-4 * scale and away.max() < scale


def test_memory_is_that_of_one_tile():
    net = autoencoder(TinyAutoencoderConfig(width=8, encoder_blocks=(1, 1, 1), decoder_blocks=(1, 1, 1)))
    z = jax.ShapeDtypeStruct((1, 128, 128, 4), jnp.float32)

    def temporaries(decode):
        lowered = jax.jit(lambda p, z: decode(lambda x: net.apply(p, x, method="decode"), z)).lower(net.abstract(), z)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    whole, parts = temporaries(lambda f, z: f(z)), temporaries(lambda f, z: tiled(f, z, 32, 8))
    assert 0 < parts < 0.25 * whole


@pytest.mark.parametrize(
    "apply, shape, tile, overlap, match",
    [
        (jnp.tanh, (1, 32, 32, 1), 8, 8, "overlap 8 must be at least 0 and less than tile 8 x 8"),
        (jnp.tanh, (1, 32, 32, 1), 8, -1, "overlap -1 must be at least 0"),
        (halve, (1, 32, 32, 1), 8, 3, "side 32, tile 8 and overlap 3 must be multiples of 2"),
        (lambda x: x[:, ::2], (1, 32, 32, 1), 8, 2, "a tile 8 x 8 becomes 4 x 8: not of one scale"),
    ],
)
def test_impossible_tiles_are_refused(apply, shape, tile, overlap, match):
    with pytest.raises(ValueError, match=match):
        tiled(apply, jnp.zeros(shape), tile, overlap)
