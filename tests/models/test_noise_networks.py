"""What both networks of noise levels promise: inputs matter, dropout by key, labels, recomputing, half precision."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import awake

from lcm_jax.models.adm import ADMConfig
from lcm_jax.models.dit import DiTConfig
from lcm_jax.source import noise_network

SMALL = {
    "adm": ADMConfig(side=8, in_channels=2, width=8, multipliers=(1, 2), layers=1, attention=(4,), head_width=8),
    "dit": DiTConfig(side=8, in_channels=2, patch=2, width=16, depth=2, heads=2),
}
BOTH = pytest.mark.parametrize("cfg", SMALL.values(), ids=SMALL)


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (3, 8, 8, 2)), 250 * jnp.log(jnp.array([0.002, 1.0, 80.0]))


@BOTH
def test_noise_level_and_every_pixel_reach_the_output(cfg, batch):
    net, params = awake(noise_network(cfg))
    x, noise = batch
    out = net.apply(params, x, noise)
    assert out.shape == x.shape
    assert float(jnp.abs(net.apply(params, x, noise + 100) - out).max()) > 1e-3
    grad = jax.grad(lambda x: net.apply(params, x, noise)[0, 0, 0, 0])(x)
    assert float(jnp.abs(grad[0]).min()) > 0 and not np.asarray(grad[1:]).any()  # one image does not see another


@BOTH
def test_one_dropout_key_gives_one_mask_and_no_key_none(cfg, batch):
    net, params = awake(noise_network(replace(cfg, dropout=0.5)))
    key = jax.random.key(3)
    once, again = (net.apply(params, *batch, dropout_key=key) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    other, none = net.apply(params, *batch, dropout_key=jax.random.key(4)), net.apply(params, *batch)
    assert float(jnp.abs(once - other).max()) > 1e-3 and float(jnp.abs(once - none).max()) > 1e-3
    sure = noise_network(cfg).apply(params, *batch, dropout_key=key)
    np.testing.assert_array_equal(sure, none)


@BOTH
def test_labels_matter_and_the_one_after_the_last_is_none_of_them(cfg, batch):
    net, params = awake(noise_network(replace(cfg, classes=3)))
    outs = [np.asarray(net.apply(params, *batch, jnp.full(3, label))) for label in range(4)]
    assert all(np.abs(outs[0] - other).max() > 1e-3 for other in outs[1:])
    with pytest.raises(ValueError, match="3 classes and takes labels"):
        net.apply(params, *batch)
    net, params = awake(noise_network(cfg))
    with pytest.raises(ValueError, match="0 classes and no labels"):
        net.apply(params, *batch, jnp.zeros(3, int))
    with pytest.raises(ValueError, match=r"image is \(4, 4, 2\), this network takes \(8, 8, 2\)"):
        net.apply(params, batch[0][:, :4, :4], batch[1])


@BOTH
def test_recomputing_blocks_changes_nothing(cfg, batch):
    def gradient(cfg):
        net, params = awake(noise_network(cfg))
        key = jax.random.key(0)
        return jax.grad(lambda p: jnp.square(net.apply(p, *batch, dropout_key=key)).mean())(params)

    plain, again = (gradient(replace(cfg, dropout=0.1, remat=remat)) for remat in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, again)


@BOTH
def test_half_precision_stays_close(cfg, batch):
    net, params = awake(noise_network(cfg))
    wide = net.apply(params, *batch)
    half = noise_network(replace(cfg, dtype="bfloat16")).apply(params, *batch)
    assert half.dtype == jnp.float32
    assert float(jnp.linalg.norm(half - wide)) < 0.1 * float(jnp.linalg.norm(wide))
