"""Joining and leaving a run of several processes: what is said when somebody is missing, who is started and ended."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import local_cluster
from lcm_jax import joining

ROOT = Path(__file__).parents[2]
TRAIN = ("launch.train", "--config=configs/quickstart.py", "--run=nowhere", "--join_timeout=2")
NAMES = ("JAX_COORDINATOR_ADDRESS", *joining.COUNTS, *joining.INDICES)


def start(*arguments, **told):
    env = {k: v for k, v in os.environ.items() if k not in NAMES} | told
    command = [sys.executable, "-m", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_who_is_missing_is_said_in_one_line_within_the_time(tmp_path):
    here = [f"127.0.0.1:{local_cluster.free_port()}" for _ in range(2)]
    flags = lambda where, index: (f"--coordinator={where}", f"--process_id={index}", "--process_count=2")
    begun = time.monotonic()
    first, second = start(*TRAIN, *flags(here[0], 0)), start(*TRAIN, *flags(here[1], 1))
    said = [process.communicate(timeout=60)[1].strip() for process in (first, second)]
    assert time.monotonic() - begun < 45  # two seconds, and the start of two processes on a busy machine
    assert first.returncode == second.returncode == 1
    assert said[0].startswith(f"error: process 0 waited 2 s at {here[0]} and not all 2 processes joined")
    assert said[1] == (
        f"error: process 1 found no coordinator at {here[1]} within 2 s: is process 0 started there?"
    )
    assert len(said[0].splitlines()) == 1


@pytest.mark.parametrize(
    "settings, env, words",
    [
        ({"coordinator": "here", "index": 0, "count": 2}, {}, "'here' is no host:port"),
        ({"coordinator": "h:1", "index": 2, "count": 2}, {}, "process 2 is none of 2"),
        ({"coordinator": "h:1", "count": 2}, {}, "no --process_id: give it, or set JAX_PROCESS_ID"),
        ({"coordinator": "h:1"}, {"JAX_PROCESS_ID": "0"}, "no --process_count: give it, or set JAX_NUM_PROCESSES"),
        ({}, {"JAX_COORDINATOR_ADDRESS": "h:1", "SLURM_PROCID": "x"}, "--process_id: 'x' is no whole number"),
        ({"index": 0}, {}, "need --coordinator host:port"),
        ({}, {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, "one of 2 processes, and where the first one listens"),
        ({}, {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"}, "one of 4 processes, .* --coordinator"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, env, words, monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words), joining.joined(**settings):
        pass


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ValueError, match=f"cannot listen at {where} .*take another port"):
            joining.check(where, 0, 2)


def test_one_process_joins_nothing(monkeypatch):
    connected = []
    monkeypatch.setattr(joining, "connect", lambda *a: connected.append(a))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for alone in ((), ("127.0.0.1:1", 0, 1)):
        with joining.joined(*alone):
            assert not connected
    with joining.joined("127.0.0.1:1", 1, 2):
        assert connected == [("127.0.0.1:1", 1, 2, joining.TIMEOUT)]


@pytest.mark.parametrize(
    "env, several",
    [
        ({}, False),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, False),  # the shell of a batch script, not one of its tasks
        ({name: "2" for name in joining.SLURM}, True),
        ({**{name: "1" for name in joining.SLURM}}, False),
        ({"OMPI_MCA_orte_hnp_uri": "u", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_a_cluster_is_known_by_its_environment(env, several):
    assert joining.in_cluster(env) == several


@pytest.mark.parametrize(
    "env, count",
    [
        ({}, 1),
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, 1),
        ({name: "2" for name in joining.SLURM}, 2),
        ({"JAX_NUM_PROCESSES": "3"}, 3),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
    ],
)
def test_a_launcher_tells_how_many_were_started(env, count):
    assert joining.told_count(env) == count


def test_what_works_as_one_process_refuses_to_be_several():
    done = start("launch.evaluate", "--model=m", "--data=d", "--out=o", JAX_NUM_PROCESSES="2")
    _, said = done.communicate(timeout=60)
    assert done.returncode == 1 and said.startswith("error: this is one of 2 processes") and "launch.score" in said


CHILD = """
import os, signal, sys, time
index = os.environ["JAX_PROCESS_ID"]
signal.signal(signal.SIGTERM, lambda *_: (print("told", flush=True), sys.exit(int(sys.argv[1]))))
print("up", os.environ["JAX_NUM_PROCESSES"], os.environ["JAX_NUM_CPU_DEVICES"], flush=True)
if sys.argv[2] == index:
    sys.exit(3)
time.sleep(60)
"""


def cluster(*arguments):
    return start("launch.local_cluster", "--processes=2", "--devices=4", *arguments)


@pytest.mark.parametrize("code", [0, 5])
def test_a_signal_goes_to_all_and_their_status_is_passed_on(code):
    process = cluster("--", sys.executable, "-c", CHILD, str(code), "none")
    lines = {process.stdout.readline().strip() for _ in range(2)}
    assert lines == {"[0] up 2 4", "[1] up 2 4"}
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert sorted(out.split("\n")) == ["", "[0] told", "[1] told"] and process.returncode == code


def test_where_one_ends_badly_the_others_are_ended():
    begun = time.monotonic()
    process = cluster("--", sys.executable, "-c", CHILD, "0", "1")
    out, _ = process.communicate(timeout=40)
    assert process.returncode == 3 and "told" not in out and time.monotonic() - begun < 30


def test_print_shows_what_would_be_started():
    process = cluster("--port=4321", "--print", "--", "python", "-m", "launch.train", "--run", "my run")
    out, _ = process.communicate(timeout=30)
    lines = out.splitlines()
    assert len(lines) == 2 and all(line.endswith("python -m launch.train --run 'my run'") for line in lines)
    assert "JAX_COORDINATOR_ADDRESS=127.0.0.1:4321 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 " in lines[1]
    process = cluster()
    assert process.communicate(timeout=30)[1] .startswith("error: nothing to run: give a command after --")


TOGETHER = """
import jax, numpy as np
from lcm_jax import joining
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
with joining.joined():
    mesh = jax.make_mesh((2,), ("data",))
    split = jax.NamedSharding(mesh, jax.P("data"))
    x = jax.make_array_from_process_local_data(split, np.ones((1, 3), np.float32))
    total = jax.jit(lambda x: jax.numpy.tanh(x).sum())
    hits.clear()
    assert float(total(x)) > 4
    print("hits", len(hits), flush=True)
"""


def test_processes_on_cpus_find_what_was_compiled_before(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    for expected in ("hits 0", "hits 1"):  # at first the slower process may find what the faster one has just kept
        process = start("launch.local_cluster", "--processes=2", "--devices=1", "--", sys.executable, "-c", TOGETHER)
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        told = [line.partition(" ")[2] for line in out.split("\n") if "hits" in line]
        assert len(told) == 2 and expected in told and (expected == "hits 0" or set(told) == {expected})


@pytest.mark.parametrize("error, status", [(KeyboardInterrupt, 130), (ValueError, 1)])
def test_one_of_several_that_fails_tells_the_others_before_it_leaves(error, status, monkeypatch):
    done = []
    monkeypatch.setattr(joining, "LEAVES", [])
    monkeypatch.setattr(joining, "connect", lambda *args: done.append("joined"))
    monkeypatch.setattr(joining.threading, "_register_atexit", lambda leave: None)
    monkeypatch.setattr(joining.jax.distributed, "shutdown", lambda: done.append("goodbye"))
    monkeypatch.setattr(joining.os, "_exit", done.append)
    with pytest.raises(error), joining.joined("localhost:1", 1, 2):
        raise error
    (leave,) = joining.LEAVES
    leave()
    assert done == ["joined", "goodbye", status]
