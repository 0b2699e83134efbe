"""The benchmark of full-size U-Nets, on a small one."""

import dataclasses

import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from benchmarks import full_size_parity  # noqa: E402
from lcm_jax.models.presets import UNETS  # noqa: E402


def test_a_small_network_is_within_the_limit():
    row = full_size_parity.compare(dataclasses.replace(UNETS["tiny"], norm_groups=8), side=8, seed=0)
    assert row["relative_error"] < full_size_parity.LIMIT and row["output_rms"] > 0.1
    assert row["tensors"] > 100 and row["latent"] == [1, 8, 8, 4]


def test_tensors_are_handed_over_once():
    module = full_size_parity.draw_module(UNETS["tiny"], 8, 0)
    tensors = full_size_parity.Handed(module)
    name = next(iter(tensors))
    assert tensors.shape(name) == tensors[name].shape and len(tensors) == len(module.state_dict())
    with pytest.raises(KeyError):
        tensors[name]
