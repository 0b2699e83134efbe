"""The diffusion transformer: its published size, its start at zero, its patches, labels, dropout and switches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import awake

from lcm_jax.models.dit import DiTConfig, dit, positions
from lcm_jax.models.norms import NORMS
from lcm_jax.models.presets import DITS, named

SMALL = DiTConfig(side=4, in_channels=3, patch=2, width=16, depth=2, heads=2)


def size(cfg):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(dit(cfg).abstract()))


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (3, 4, 4, 3)), 250 * jnp.log(jnp.array([0.002, 1.0, 80.0]))


def test_the_size_of_dit_b2_is_met():
    """DiT-B has 130 M (arXiv 2212.09748, Tab. 1); here with labels, layers' own biases and a root-mean-square norm."""
    labelled = size(replace(named(DITS, "dit_b2"), classes=1000))
    width, depth = 768, 12
    block = 18 * width**2 + 15 * width  # 12 w^2 of attention and MLP, 6 w^2 of modulation; biases; two scales less one
    assert abs(labelled - 130e6) < 1.5e6
    assert size(named(DITS, "dit_b2")) == pytest.approx(depth * block, rel=0.02)


@pytest.mark.parametrize("name", NORMS)
def test_a_fresh_network_answers_zero_whatever_its_norm(name, batch):
    net = dit(replace(SMALL, norm=name))
    assert not np.asarray(net.apply(net.init(jax.random.key(1)), *batch)).any()


def test_patches_go_back_to_where_they_came_from(batch):
    """With blocks and modulation asleep and linear maps that are identities, the output is the norm of the input."""
    cfg = replace(SMALL, width=16, in_channels=4, norm="rms")
    net = dit(cfg)
    params = jax.tree.map(np.asarray, net.init(jax.random.key(0)))
    params["patches"]["kernel"] = params["out"]["kernel"] = np.eye(16, dtype=np.float32)
    x = 100 * jax.random.normal(jax.random.key(1), (2, 4, 4, 4))  # large beside the positions
    out = net.apply(params, x, jnp.zeros(2))
    patch = np.asarray(x).reshape(2, 2, 2, 2, 2, 4)
    expected = x / np.broadcast_to(np.sqrt((patch**2).mean((2, 4, 5), keepdims=True)), patch.shape).reshape(x.shape)
    np.testing.assert_allclose(out, expected, atol=0.05)


def test_positions_tell_every_patch_apart():
    found = positions(8, 32).reshape(64, 32)
    apart = np.linalg.norm(found[:, None] - found[None], axis=-1) + 10 * np.eye(64)
    assert apart.min() > 0.3
    np.testing.assert_array_equal(positions(8, 32)[2, 5, :16], positions(8, 32)[2, 0, :16])  # rows


@pytest.mark.parametrize(
    "change, match",
    [
        ({"side": 5}, "side 5 does not split into patches of 2"),
        ({"heads": 3}, "width 16 does not split into 3 heads"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
    ],
)
def test_impossible_sizes_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        dit(replace(SMALL, **change))
    net, params = awake(dit(SMALL))
    with pytest.raises(ValueError, match="this network takes"):
        net.apply(params, jnp.zeros((1, 8, 8, 3)), jnp.zeros(1))
