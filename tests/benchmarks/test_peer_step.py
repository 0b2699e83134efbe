"""The two sides of the comparison with PyTorch do the same work, and the comparison says so when they do not."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

from benchmarks import peer_jax, peer_step, peer_torch  # noqa: E402
from benchmarks.peer_case import PRESETS  # noqa: E402

TINY = PRESETS["tiny"]


class InProcess:
    """A side whose answers need no process of its own."""

    def __init__(self, built):
        self.built = built

    def ask(self, name, *args):
        return getattr(self.built, name)(*args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("weights")
    peer_jax.write_weights(TINY, where)
    return where


def test_a_training_step_comes_to_the_same_loss_and_gradients(folder):
    """Only with the same draws: another w for one sample is found out."""
    ours = peer_jax.Training(TINY)
    drawn = ours.check()
    side = InProcess(peer_torch.Training(TINY, folder, "eager, channels last"))
    found = peer_step.check("Training", TINY, drawn, side)
    assert set(found) == {"loss/mean", "grad_norm"} and ours.flops > 1e6
    drawn["sample/w"] = drawn["sample/w"] + np.array([1.0, 0.0], np.float32)
    with pytest.raises(ValueError, match="not the same work"):
        peer_step.check("Training", TINY, drawn, side)


def test_sampling_comes_to_the_same_images(folder):
    ours = peer_jax.Sampling(TINY)
    drawn = ours.check()
    side = InProcess(peer_torch.Sampling(TINY, folder, "eager"))
    peer_step.check("Sampling", TINY, drawn, side)
    assert drawn["images"].shape == (2, 16, 16, 3) and drawn["images"].std() > 0.05
    drawn["noise"] = np.roll(drawn["noise"], 1, 0)
    with pytest.raises(ValueError, match="not the same work"):
        peer_step.check("Sampling", TINY, drawn, side)
