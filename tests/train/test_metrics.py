import json
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from lcm_jax.train.metrics import MetricsWriter, read


def points(folder):
    """(name, step, value) of the event files, read by their own framing: length, crc, bytes, crc."""
    found = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        blob, at = path.read_bytes(), 0
        while at < len(blob):
            (size,) = struct.unpack("<Q", blob[at : at + 8])
            event = Event.FromString(blob[at + 12 : at + 12 + size])
            found += [(v.tag, event.step, pytest.approx(v.simple_value)) for v in event.summary.value]
            at += size + 16
    return found


def test_scalars_reach_the_lines_and_the_event_file(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(10, {"loss/mean": 0.25, "images/s": 8.0})
    writer.write(20, {"loss/mean": float("nan")})
    writer.close()
    lines = read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss/mean"]) for line in lines] == [(10, 0.25), (20, None)]
    assert points(tmp_path)[:2] == [("loss/mean", 10, 0.25), ("images/s", 10, 8.0)]


def test_a_run_that_goes_on_forgets_what_lies_after_its_start(tmp_path):
    writer = MetricsWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, {"loss/mean": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "loss/me')  # killed while writing
    writer = MetricsWriter(tmp_path, start=20)
    writer.write(30, {"loss/mean": 31.0})
    writer.close()
    lines = read(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss/mean"]) for line in lines] == [(10, 10.0), (20, 20.0), (30, 31.0)]


def test_the_bar_shows_loss_speed_and_waiting(tmp_path, capsys):
    writer = MetricsWriter(tmp_path, start=5, steps=20)
    writer.write(10, {"loss/mean": 0.5, "images/s": 12.0, "data/wait_share": 0.01, "grad_norm/mean": 3.0})
    writer.tick(10)
    writer.close()
    shown = capsys.readouterr().err
    assert "10/20" in shown and "loss=0.5" in shown and "img/s=12" in shown and "data wait=0.01" in shown
    assert "grad_norm" not in shown


def test_a_line_that_is_no_json_is_not_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(json.JSONDecodeError):
        read(tmp_path / "metrics.jsonl")
