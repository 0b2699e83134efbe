"""A benchmark's run is scored when it is whole."""

from types import SimpleNamespace

import pytest

from benchmarks import training


def test_a_run_of_other_length_ends_the_benchmark(monkeypatch, tmp_path):
    reached = iter((3, 5))
    monkeypatch.setattr(training.build, "run", lambda config: config)
    monkeypatch.setattr(training.run_folder, "train", lambda run, where: SimpleNamespace(step=next(reached)))
    with pytest.raises(SystemExit, match="stopped after step 3 of 5 of .*; the same command goes on"):
        training.train({"steps": 5}, tmp_path)
    training.train({"steps": 5}, tmp_path)
    (tmp_path / "config.json").write_text('{"steps": 5}')
    with pytest.raises(SystemExit, match="holds a run of 5 steps, asked for are 9: give another --out"):
        training.train({"steps": 9}, tmp_path)
