"""Ratios with known answers, and the table and figure made of them."""

import numpy as np
import pytest
from PIL import Image

from lcm_jax.evaluate import figure, report
from lcm_jax.evaluate.ratios import ratios

R = 50
NOISE = np.random.default_rng(0).normal(size=R)


def entry(who, steps, kid, fd, hits, w=2.0, name="generated", spread=0.01):
    values = {"kid": kid, "fd": fd, "top1": hits, "top5": hits, "top1_group": hits, "top5_group": hits}
    resampled = {n: v * (1 + spread * NOISE) for n, v in values.items()}
    scored = {
        n: {"mean": v, "spread": None, "per_seed": [v], "interval": [v * 0.98, v * 1.02]} for n, v in values.items()
    }
    place = {"who": who, "split": "heldout", "name": name, "scores": scored, "resampled": resampled}
    if who == "control":
        return place
    nfe = steps * (2 if who == "teacher" else 1)
    return {**place, "sampler": "ddim" if who == "teacher" else "lcm", "steps": steps, "w": w, "nfe": nfe}


def entries(kid4=0.011):
    return [
        entry("control", 0, 0.0001, 300.0, 0.01, name="floor"),
        entry("control", 0, 0.05, 540.0, 0.9, name="blurred_floor"),
        entry("student", 2, 0.02, 360.0, 0.4),
        entry("student", 4, kid4, 340.0, 0.45),
        entry("teacher", 2, 0.08, 500.0, 0.1),
        entry("teacher", 50, 0.01, 340.0, 0.5),
    ]


def load(e):
    return e["resampled"]


def found(rows, ours, statistic):
    (row,) = [r for r in rows if r["ours"].startswith(f"student {ours}") and r["statistic"] == statistic]
    return row


def test_ratios_have_their_known_values():
    rows = ratios(entries(), load)
    assert len(rows) == 2 + 2 + 4
    two = found(rows, 2, "kid")
    assert two["ratio"] == pytest.approx(0.25) and two["holds"] and two["holds_in_interval"]
    assert two["interval"] == pytest.approx([0.25, 0.25])  # ours and the teacher's vary together here
    excess = found(rows, 2, "fd - floor")
    assert excess["ratio"] == pytest.approx(60 / 200)
    four = found(rows, 4, "kid")
    assert four["ratio"] == pytest.approx(1.1) and four["holds"] and four["blur_fails"]
    assert four["blur_ratio"] == pytest.approx(5.0)
    hits = found(rows, 4, "top5")
    assert hits["ratio"] == pytest.approx(0.9) and hits["holds"] and hits["blur_fails"] is None


def test_a_broken_promise_is_said():
    row = found(ratios(entries(kid4=0.02), load), 4, "kid")
    assert row["ratio"] == pytest.approx(2.0) and not row["holds"] and not row["holds_in_interval"]


def test_a_blur_that_passes_is_said():
    rows = entries()
    rows[1] = entry("control", 0, 0.005, 310.0, 0.9, name="blurred_floor")
    made = ratios(rows, load)
    assert found(made, 4, "kid")["blur_fails"] is False
    result = {"protocol": PROTOCOL, "entries": [], "references": {}, "ratios": made}
    assert "PASSES" in report.markdown(result)


def test_a_teacher_at_the_floor_has_no_ratio_but_a_verdict():
    rows = entries()
    rows[-1] = entry("teacher", 50, -0.0005, 299.0, 0.5)
    row = found(ratios(rows, load), 4, "kid")
    assert row["ratio"] is None and row["interval"] is None and row["holds"] is False


def test_a_row_needs_all_its_settings_and_takes_the_teacher_at_the_same_w():
    assert ratios(entries()[:-2], load) == []
    rows = entries() + [entry("teacher", 2, 0.1, 500.0, 0.1, w=1.0), entry("student", 2, 0.02, 360.0, 0.4, w=1.0)]
    rows += [entry("student", 2, 0.02, 360.0, 0.4, w=5.0)]
    pairs = {(r["ours"][-1], r["theirs"][-1]) for r in ratios(rows, load) if r["ours"].startswith("student 2")}
    assert pairs == {("2", "2"), ("1", "1"), ("5", "2")}


PROTOCOL = {"features": {"name": "Fake"}, "resamples": R}


def result():
    chance = {"top1": 1 / 40, "top5": 5 / 40}
    about = {"n": 40, "gallery": 40, "chance": chance, "own": {"copies": 0.025, "nearest_train": 0.1}}
    made = entries()
    return {"protocol": PROTOCOL, "entries": made, "references": {"heldout": about}, "ratios": ratios(made, load)}


def test_the_table_says_every_score_once_and_keeps_its_columns():
    text = report.markdown(result())
    lines = text.splitlines()
    assert "FD-Fake" in text and "n = 40 images" in text and "top-1 caption 2.5 %" in text
    assert len([line for line in lines if line.startswith("| student")]) == 2
    student = next(line for line in lines if [c.strip() for c in line.split("|")[1:3]] == ["student", "lcm"])
    cells = [cell.strip() for cell in student.split("|")[1:-1]]
    assert cells[:5] == ["student", "lcm", "2", "2", "2"]
    assert "360.0 [352.8, 367.2]" in cells and "20.00 [19.60, 20.40]" in cells and "40.0 % [39.2, 40.8]" in cells
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_figure_is_a_picture(tmp_path):
    path = figure.figure(result(), tmp_path / "deep" / "scores.png")
    with Image.open(path) as image:
        assert image.size[0] > 1000 and len(image.convert("RGB").getcolors(1 << 20)) > 20
    assert [p.name for p in path.parent.iterdir()] == ["scores.png"]


def test_a_figure_of_nothing_is_an_error(tmp_path):
    empty = {**result(), "entries": result()["entries"][:2]}
    with pytest.raises(ValueError, match="nothing was generated"):
        figure.figure(empty, tmp_path / "x.png")
