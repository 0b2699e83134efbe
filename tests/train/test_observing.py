"""A run watched from within."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.train import observing
from lcm_jax.train.loop import run
from lcm_jax.train.metrics import MetricsWriter, read
from lcm_jax.train.state import State

ROOT = Path(__file__).parents[2]
HANGING = """
import os
import time
import numpy as np
from lcm_jax.train.loop import run
from lcm_jax.train.state import State

def step(state, frozen, batch, key):
    late = 0.1 * int(os.environ.get("JAX_PROCESS_ID", 0))  # the clock of a second process was set a little later
    time.sleep(late if state.step < 3 else 60)  # the fourth never ends
    return State(state.step + 1, None, None, None, None), {}

class Ones:
    def __next__(self):
        return {"x": np.ones(2)}

if folder := os.environ.get("MEET"):  # as the first collective of a run would, all begin together
    open(f"{folder}/{os.environ['JAX_PROCESS_ID']}", "w").close()
    while len(os.listdir(folder)) < 2:
        time.sleep(0.01)
run(step, State(0, None, None, None, None), None, Ones(), None, 9, place_batch=dict, hang_seconds=2.0)
"""


class Ones:
    def __next__(self):
        time.sleep(0.005)
        return {"x": np.ones(4, np.float32)}

    def get_state(self):
        return {}

    def set_state(self, state):
        assert state == {}


def go(steps, **settings):
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 40, lambda i, m: jnp.cos(m @ m), jnp.full((128, 128), x[0]))[0, 0])

    def step(state, frozen, batch, key):
        return State(state.step + 1, None, None, None, None), {"loss/mean": slow(batch["x"])}

    key = jax.random.key(0)
    return run(step, State(0, None, None, None, None), None, Ones(), key, steps, place_batch=dict, **settings)


def test_a_step_that_hangs_ends_the_process_with_its_stacks():
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGALRM
    assert "Timeout" in done.stderr and "in step" in done.stderr and "loop.py" in done.stderr


def test_every_process_tells_its_stacks_before_the_first_is_gone(tmp_path):
    """The launcher ends the others at once."""
    cluster = [sys.executable, "-m", "launch.local_cluster", "--processes=2", "--", sys.executable, "-c", HANGING]
    env = {**os.environ, "MEET": str(tmp_path)}
    done = subprocess.run(cluster, capture_output=True, text=True, timeout=120, cwd=ROOT, env=env)
    assert done.returncode == 128 + signal.SIGALRM
    for process in (0, 1):
        said = [line for line in done.stderr.splitlines() if line.startswith(f"[{process}]")]
        assert any("Timeout" in line for line in said) and any("in step" in line for line in said)


def test_the_time_is_split_and_hooks_count_apart(tmp_path):
    writer = MetricsWriter(tmp_path)
    go(20, log_steps=6, sample_steps=10, hooks=[lambda *a: time.sleep(0.2)], writer=writer)
    writer.close()
    rows = [row for row in read(tmp_path / "metrics.jsonl") if "images/s" in row]
    assert len(rows) == 4
    for row in rows:
        assert 0 < row["data/wait_share"] <= 1 - row["device/wait_share"] <= 1
    spent = [row.get("hooks/seconds", 0.0) for row in rows]
    assert [seconds >= 0.2 for seconds in spent] == [False, True, False, False]  # the last one comes after all rows


def test_memory_is_told_where_the_device_knows_it(monkeypatch):
    for stats, said in [({"peak_bytes_in_use": 3 * 2**30}, {"device/peak_gib": 3.0}), (None, {}), ({}, {})]:
        device = SimpleNamespace(memory_stats=lambda stats=stats: stats)
        monkeypatch.setattr(jax, "local_devices", lambda device=device: [device])
        assert observing.memory() == said


def test_steps_are_recorded_on_request(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: seen.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: seen.append("stop"))
    tracer = observing.Tracer((3, 4), tmp_path)
    for step in range(1, 8):
        tracer.begin(step)
        seen.append(step)
        tracer.end(step, jnp.ones(()))
    tracer.close()
    assert seen == [1, 2, ("start", str(tmp_path / "profile")), 3, 4, "stop", 5, 6, 7]


def test_a_recording_is_written_and_a_range_that_is_none_refused(tmp_path):
    go(5, profile=(2, 3), folder=tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    for steps in ((0, 3), (4, 3)):
        with pytest.raises(ValueError, match=f"cannot record steps {steps[0]} to {steps[1]}"):
            go(5, profile=steps, folder=tmp_path)
    with pytest.raises(ValueError, match="needs a folder"):
        go(5, profile=(1, 2))
    with pytest.raises(ValueError, match="hang_seconds must be at least 0"):
        go(5, hang_seconds=-1.0)
