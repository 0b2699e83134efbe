"""A run's page: the account of its time, and a document that stands alone."""

import json
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lcm_jax.assess.run_record import run_record
from lcm_jax.assess.run_report import arithmetic, report, spent
from lcm_jax.evaluate import page
from lcm_jax.evaluate.curves import curves
from lcm_jax.parallel.chips import of_kind
from lcm_jax.train import lives
from lcm_jax.train.course import Course

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ALONE = ("meta", "img")  # elements without an end
START = 1_700_000_000.0
CONFIG = {"objective": {"name": "lcd", "w_max": 4.0}, "data": {"batch_size": 8}, "steps": 400, "seed": 0}
# Two lives of 8 images a step at 80 images/s: 0.1 s a step; the second goes on from step 100.
ROWS = [
    {"step": 50, "images/s": 80.0, "data/wait_share": 0.01, "loss/mean": 2.0, "first_step/seconds": 9.0},
    {"step": 100, "images/s": 80.0, "data/wait_share": 0.03, "loss/mean": 0.01},
    {"step": 150, "images/s": 40.0, "data/wait_share": 0.02, "loss/mean": None, "first_step/seconds": 4.0},
    {"step": 200, "images/s": 80.0, "data/wait_share": 0.02, "save/seconds": 2.0, "device/wait_share": 0.9},
    {"step": 200, "images/s": 0.0, "fd": 3.0},
]


@pytest.fixture
def run(tmp_path):
    where = tmp_path / "a <run>"
    (where / "checkpoints").mkdir(parents=True)
    (where / "samples").mkdir()
    for step in range(100, 1000, 100):
        Image.fromarray(np.full((4, 4, 3), step // 4, np.uint8)).save(where / "samples" / f"step_{step:07d}.png")
    (where / "config.json").write_text(json.dumps(CONFIG))
    lines = [json.dumps({"time": START + 10 * i, **row}) + "\n" for i, row in enumerate(ROWS, 1)]
    (where / "metrics.jsonl").write_text("".join(lines))
    begun = [{"time": START, "step": 0, "machine": {}}, {"time": START + 25, "step": 100}]
    (where / "lives.jsonl").write_text("".join(json.dumps(life) + "\n" for life in begun))
    return where


class Strict(HTMLParser):
    """Raises on an end without its beginning; gathers text and what is loaded from elsewhere."""

    def __init__(self, text):
        super().__init__()
        self.open, self.outside, self.text = [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in ALONE:
            self.open.append(tag)
        given = dict(attrs)
        wanted = [given.get("src"), given.get("href"), given.get("xlink:href")]
        self.outside += [name for name in wanted if name and not name.startswith(("data:", "#"))]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in ALONE:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_a_course_goes_on_where_the_lives_before_stood(monkeypatch):
    monkeypatch.setattr("time.time", lambda: START + 50)
    course = Course(START, counted=24.0, least=0.05)
    assert course.rates(1.0, 10) == {"goodput": 25 / 50, "mfu": 0.5}
    assert course.rates(5.0, 10) == {"goodput": 30 / 50, "mfu": 0.1}
    assert Course(START).rates(5.0, 10) == {"goodput": 0.1}


def test_only_steps_that_counted_count(run):
    record = run_record(run)
    assert record.step == 200 and record.wall == 50.0
    # 49 + 50 steps of 0.1 s, 49 of 0.2 s and 50 of 0.1 s; the first of each life holds the compilation.
    assert record.counted == pytest.approx(4.9 + 5.0 + 9.8 + 5.0)
    assert record.goodput == pytest.approx(24.7 / 50)
    assert record.median("loss/mean") == 1.005 and record.total("first_step/seconds") == 13.0


def test_the_page_stands_alone_and_says_what_there_is(run, tmp_path):
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "table.md").write_text("# Scores\n\n| model | FD |\n| --- | --- |\n| a & b | 3.5 |\n\nFewer is better.\n")
    path = report(run, [scores])
    assert path == run / "report.html" and not list(run.glob(".report*"))
    seen = Strict(path.read_text())
    assert not seen.outside
    numbers = ("49.4 %", "0:00:25", "2.00 %", "0:00:02", "90.0 %")
    for said in ("a <run>", "step 200 of 400", "objective.w_max", "a & b", *numbers):
        assert said in seen.text, said
    assert path.read_text().count("data:image/png") == 1 + 4  # the newest grid and every second before it


def test_operations_are_set_against_the_chip(run):
    record = run_record(run)
    found = arithmetic(record, 4e12)  # 8 images a step, 80 a second
    assert found == {"operations a step": "4 TFLOP", "operations a second": "40 TFLOP/s"}
    record.lives[-1]["machine"] = {"device": {"kind": "TPU v5 lite", "count": 2}}
    assert arithmetic(record, 4e12)["MFU, 2 x v5e"] == "10.2 %"
    kinds = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200", "NVIDIA A100-SXM4-80GB": "A100", "TPU v5": "v5p"}
    assert {kind: of_kind(kind).name for kind in kinds} == kinds and of_kind("cpu") is None


def test_a_run_that_has_only_begun_has_a_page(run):
    for name in ("metrics.jsonl", "lives.jsonl"):
        (run / name).unlink()
    for grid in (run / "samples").iterdir():
        grid.unlink()
    text = report(run, out=run / "elsewhere" / "page.html").read_text()
    assert "Nothing was written yet" in text and "goodput" not in text and "Samples" not in text


def test_what_is_not_there_is_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no table.md: give an --out folder of launch.evaluate"):
        report(run, [tmp_path])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        report(tmp_path)
    with pytest.raises(ValueError, match="no metric was written yet"):
        curves([{"step": 1, "time": 2.0}])


def test_lives_are_noted_in_order_and_an_unfinished_line_is_none(tmp_path):
    assert lives.read(tmp_path) == []
    for step in (0, 7):
        lives.begin(tmp_path, step, {"machine": {"cores": 2}})
    with (tmp_path / "lives.jsonl").open("a") as file:
        file.write('{"time": 3')
    assert [(life["step"], life["machine"]["cores"]) for life in lives.read(tmp_path)] == [(0, 2), (7, 2)]


def test_text_is_escaped_and_durations_are_read_off():
    assert page.facts({"<a>": "1 & 2"}) == "<dl><div><dt>&lt;a&gt;</dt><dd>1 &amp; 2</dd></div></dl>"
    assert [spent(s) for s in (59.6, 3661.0)] == ["0:01:00", "1:01:01"]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed to open the page with")
def test_a_browser_draws_the_page(run, tmp_path):
    path, shot = report(run), tmp_path / "page.png"
    bare = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    drawn = [*bare, "--window-size=1000,2000", f"--screenshot={shot}", path.as_uri()]
    subprocess.run(drawn, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(shot).convert("RGB"))
    assert pixels.shape == (2000, 1000, 3)
    lines = (pixels != pixels[0, 0]).any(axis=(1, 2))
    assert lines[:1000].mean() > 0.3  # text, pictures and curves, no blank page or error
    text = subprocess.run([*bare, "--dump-dom", path.as_uri()], check=True, capture_output=True, text=True, timeout=120)
    assert "goodput" in text.stdout and text.stdout.count("<svg") == 1
