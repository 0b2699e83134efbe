"""EDM's U-Net: the published sizes, its start at zero, its dropout, its labels and its norms."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.models.adm import ADMConfig, adm, halve
from lcm_jax.models.dropout import drop
from lcm_jax.models.layers import double
from lcm_jax.models.norms import NORMS
from lcm_jax.models.presets import ADMS, named

SMALL = ADMConfig(side=8, in_channels=2, width=8, multipliers=(1, 2), layers=1, attention=(4,), head_width=8)


def size(cfg):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(adm(cfg).abstract()))


@pytest.fixture
def batch():
    keys = jax.random.split(jax.random.key(0), 2)
    return jax.random.normal(keys[0], (3, 8, 8, 2)), 250 * jnp.log(jnp.array([0.002, 1.0, 80.0]))


def test_the_sizes_of_the_paper_are_met():
    """151.3 M with group norm, 158.4 M with non-scaling LayerNorm (its authors' network for 32 x 32 x 4 latents)."""
    assert size(ADMConfig(norm="group")) == 151_325_956
    assert size(ADMConfig()) == size(named(ADMS, "latent32")) == 158_355_972


@pytest.mark.parametrize("name", NORMS)
def test_a_fresh_network_answers_zero_whatever_its_norm(name, batch):
    net = adm(replace(SMALL, norm=name))
    params = net.init(jax.random.key(1))
    assert not np.asarray(net.apply(params, *batch)).any()
    scales = [path for path, _ in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "scale"]
    assert bool(scales) != name.startswith("ns_")


def test_weights_and_biases_start_within_one_over_the_root_of_their_inputs():
    params = adm(SMALL).init(jax.random.key(0))
    for part, fan_in in ((params["conv_in"], 18), (params["map_layer1"], 32)):
        for leaf in part.values():
            bound = 1 / np.sqrt(fan_in)
            assert 0.7 * bound < float(jnp.abs(leaf).max()) <= bound


def test_dropout_keeps_the_mean():
    kept = drop(jnp.ones((1, 100, 100, 4)), 0.3, jax.random.key(0))
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)
    assert float((kept == 0).mean()) == pytest.approx(0.3, abs=0.02)


def test_halving_means_and_doubling_repeats():
    x = jax.random.normal(jax.random.key(0), (1, 4, 6, 3))
    np.testing.assert_allclose(halve(x)[0, 1, 2], x[0, 2:4, 4:6].mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(halve(double(x)), x, rtol=1e-6)


@pytest.mark.parametrize(
    "change, match",
    [
        ({"side": 9}, "side 9 cannot be halved 1 times"),
        ({"head_width": 12}, "16 channels do not split into heads of 12"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"norm": "batch"}, "unknown norm 'batch'"),
    ],
)
def test_impossible_sizes_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        adm(replace(SMALL, **change))
