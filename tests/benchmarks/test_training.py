"""A benchmark's run that was stopped is not taken for a whole one."""

from types import SimpleNamespace

import pytest

from benchmarks import training


def test_a_stopped_run_ends_the_benchmark(monkeypatch, tmp_path):
    reached = iter((3, 5))
    monkeypatch.setattr(training.build, "run", lambda config: config)
    monkeypatch.setattr(training.run_folder, "train", lambda run, where: SimpleNamespace(step=next(reached)))
    with pytest.raises(SystemExit, match="stopped after step 3 of 5 of .*; the same command goes on"):
        training.train({"steps": 5}, tmp_path)
    training.train({"steps": 5}, tmp_path)
