"""The table of consistency training: its rows are runs that can be built, its intervals are Student's."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks import results, slct_table
from lcm_jax import sections
from lcm_jax.objectives import base


@pytest.mark.parametrize("row", slct_table.VARIANTS)
def test_every_row_is_an_objective(row):
    told = dict(slct_table.VARIANTS[row].objective)
    steps = {} if row == slct_table.REFERENCE else {"steps": 70, "s1": 40}
    assert isinstance(sections.build_objective({**told, **steps}), base.Objective)


def test_the_interval_of_three_seeds_is_students():
    assert slct_table.spread([9.0]) == "9"
    assert slct_table.spread([9.0, 10.0, 11.0]) == "10 [8, 12]"  # 4.303 / sqrt 3 = 2.48
    assert slct_table.spread([0.9, 1.0, 1.1], 2) == "1.00 [0.75, 1.25]"


def test_calls_at_once_lose_nothing_of_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def add(number):
        with results.held():
            others = results.kept("table").get("runs", [])
            time.sleep(0.005)  # what two calls need to read the same
            results.save("table", {"runs": [*others, number]}, show=False)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(16)))
    assert sorted(results.kept("table")["runs"]) == list(range(16))


def test_rows_and_picture(tmp_path):
    one = lambda kid: {"kid": kid, "fd": 2 * kid, "fd - floor": kid, "precision": 0.5, "recall": 0.25}
    runs = [{"row": "iCT", "seed": s, "scores": {"1": one(90.0 + s), "2": one(80.0)}} for s in (0, 1)]
    runs.insert(0, {"row": slct_table.REFERENCE, "seed": 0, "scores": {"18": one(7.0)}})
    controls = {"real": one(0.0), "blurred": one(70.0)}
    lines = slct_table.table(runs, controls).splitlines()
    assert lines[4] == "| iCT | 1 | 90 [84, 97] | 181 [168, 194] | 90 [84, 97] | 0.25 [0.25, 0.25] |"
    assert lines[-1] == "| EDM | 18 | 7 | 14 | 7 | 0.25 |" and len(lines) == 7
    assert slct_table.draw(runs, controls, tmp_path / "a.png").stat().st_size > 1000
