"""launch.evaluate --watch: every checkpoint once, as it lands, until the last."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from launch import evaluate
from lcm_jax.assess import watching
from lcm_jax.train.checkpoint import Checkpointer, CheckpointError


@pytest.fixture
def run(tmp_path):
    """A run's folder and save(step), which keeps the two newest checkpoints."""
    (tmp_path / "config.json").write_text(json.dumps({"steps": 40}))
    keep = Checkpointer(tmp_path / "checkpoints", keep=2)

    def save(step: int) -> None:
        keep.save(step, {"x": jnp.ones(2)}, {"position": 0}, {})
        keep.wait()

    yield tmp_path, save
    keep.close()


def test_steps_come_as_they_land_and_end_with_the_last(run):
    where, save = run
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        for step in {1: (10,), 2: (20, 30), 3: (40,)}[len(waited)]:
            save(step)

    assert list(watching.landed(where, 5.0, sleep)) == [10, 20, 30, 40] and waited == [5.0] * 3


def test_a_checkpoint_that_goes_before_it_is_reached_is_passed_over(run):
    where, save = run
    save(10)
    save(20)
    steps = watching.landed(where, 0.0, lambda seconds: pytest.fail("nothing to wait for"))
    assert next(steps) == 10
    save(30)
    save(40)
    assert list(steps) == [30, 40]


def test_the_command_scores_each_and_outlives_one_that_cannot_be_read(run, monkeypatch, caplog):
    where, save = run
    scored = []

    def score(step, out):
        if step == 30:
            raise CheckpointError("cut short")
        scored.append((step, out.name))

    for step in (30, 40):
        save(step)
    monkeypatch.setattr(evaluate, "score", score)
    given = {"WATCH": True, "CHECKPOINT": str(where), "OUT": str(where / "scores"), "STEP": None, "POLL": 1.0}
    for name, value in given.items():
        monkeypatch.setattr(evaluate, name, SimpleNamespace(value=value, name=name.lower()))
    evaluate.main()
    assert scored == [(40, "step_0000040")] and "step 30 is passed over: cut short" in caplog.text
    monkeypatch.setattr(evaluate, "STEP", SimpleNamespace(value=40))
    with pytest.raises(SystemExit, match="give --checkpoint, and no --step"):
        evaluate.main()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        next(watching.landed(where / "scores", 1.0))
