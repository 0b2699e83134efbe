import functools
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import place_batch, replicate
from lcm_jax.train.checkpoint import Checkpointer, CheckpointError
from lcm_jax.train.interrupt import Interrupt
from lcm_jax.train.loop import NonFiniteLoss, run
from lcm_jax.train.metrics import MetricsWriter, read
from lcm_jax.train.state import State

ROOT = jax.random.key(7)
MESH = make_mesh(devices=jax.devices()[:1])
PLACE = functools.partial(place_batch, mesh=MESH)


class Numbers:
    """An endless loader of 8 numbers a batch; `poison` is the read that brings a NaN."""

    def __init__(self, poison=None, pause=0.0, end=None):
        self.read, self.poison, self.pause, self.end = 0, poison, pause, end

    def __next__(self):
        if self.pause:  # to sleep for no time is to let others go first
            time.sleep(self.pause)
        if self.read == self.end:
            raise StopIteration
        x = np.random.default_rng(self.read).normal(size=(8, 3)).astype(np.float32)
        self.read += 1
        if self.read == self.poison:
            x[2] = np.nan
        return {"x": x, "index": np.arange(8) + 8 * self.read}

    def get_state(self):
        return {"read": self.read}

    def set_state(self, state):
        self.read = state["read"]


def new_state():
    w = jnp.ones(3)
    state = State(step=jnp.int32(0), params={"w": w}, target=None, ema={"w": w * 1.0}, opt_state=())
    return replicate(state, MESH)  # where the step leaves it: anything else costs a second compilation


def sgd():
    """One jitted, donated step of plain SGD with noise from the step's own key, and its count of traces."""

    def step(state, frozen, batch, key):
        step.traces += 1
        noise = jax.random.normal(jax.random.fold_in(key, state.step), (8,))

        def loss(params):
            return jnp.mean((batch["x"] @ params["w"] - frozen["bias"] - noise) ** 2)

        value, grads = jax.value_and_grad(loss)(state.params)
        params = jax.tree.map(lambda p, g: p - 0.01 * g, state.params, grads)
        ema = jax.tree.map(lambda e, p: 0.9 * e + 0.1 * p, state.ema, params)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        new = State(step=state.step + 1, params=params, target=None, ema=ema, opt_state=())
        return new, {"loss/mean": value, "grad_norm/mean": norm, "times": jnp.arange(8) * (state.step + 1)}

    step.traces = 0
    jitted = jax.jit(step, donate_argnums=0)
    jitted.plain = step
    return jitted


STEP = sgd()
FROZEN = {"bias": jnp.zeros(8)}


def resume(folder):
    """State and loader as a run that starts, or starts again, in `folder` makes them."""
    checkpointer, loader, state = Checkpointer(folder / "checkpoints"), Numbers(), new_state()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    found = checkpointer.restore(shapes)
    if found is not None:
        state = found.state
        loader.set_state(found.position)
    return checkpointer, loader, state


def go(loader, steps, state=None, step_fn=None, **kwargs):
    state = new_state() if state is None else state
    return run(step_fn or STEP, state, FROZEN, loader, ROOT, steps, place_batch=PLACE, **kwargs)


def test_means_are_written_every_interval_after_one_trace(tmp_path):
    step_fn, writer, losses = sgd(), MetricsWriter(tmp_path), []

    def kept(*args):
        state, metrics = step_fn(*args)
        losses.append(metrics["loss/mean"])
        return state, metrics

    state = go(Numbers(), 25, step_fn=kept, log_steps=10, writer=writer)
    writer.close()
    lines = read(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 25]
    for line, of in zip(lines, (losses[:10], losses[10:20], losses[20:]), strict=True):
        assert line["loss/mean"] == pytest.approx(np.mean([float(x) for x in of]), rel=1e-6)
    assert {"grad_norm/mean", "images/s", "data/wait_share"} <= lines[1].keys() and "times" not in lines[1]
    assert "first_step/seconds" in lines[0] and "first_step/seconds" not in lines[1]
    assert int(state.step) == 25 and step_fn.plain.traces == 1


def test_a_step_is_dispatched_before_the_numbers_of_the_one_before_are_fetched(monkeypatch):
    events, get = [], jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: events.append("fetch") or get(tree))
    go(Numbers(), 9, step_fn=lambda *args: events.append("step") or STEP(*args), log_steps=4)
    assert events == ["step"] * 5 + ["fetch"] + ["step"] * 4 + ["fetch"] * 2


def test_time_waiting_for_data_is_measured(tmp_path):
    shares = []
    for pause in (0.0, 0.1):
        writer = MetricsWriter(tmp_path / str(pause))
        go(Numbers(pause=pause), 11, log_steps=10, writer=writer)
        writer.close()
        shares.append(read(tmp_path / str(pause) / "metrics.jsonl")[0]["data/wait_share"])
    assert shares[1] > max(0.5, shares[0])


def test_hooks_see_the_state_and_add_metrics(tmp_path):
    seen, writer = [], MetricsWriter(tmp_path)

    def hook(step, state, metrics):
        seen.append((step, int(state.step), "loss/mean" in metrics))
        return {"sample/score": float(step)}

    go(Numbers(), 10, log_steps=3, sample_steps=4, hooks=(hook,), writer=writer)
    writer.close()
    assert seen == [(4, 4, True), (8, 8, True), (10, 10, True)]
    assert [x["sample/score"] for x in read(tmp_path / "metrics.jsonl") if "sample/score" in x] == [4, 8, 10]


def test_garbage_is_not_looked_for_in_what_the_first_step_left_while_a_run_goes_on():
    frozen = []
    go(Numbers(), 4, sample_steps=2, hooks=(lambda *_: frozen.append(gc.get_freeze_count()),))
    assert min(frozen) > 10_000 and gc.get_freeze_count() == 0


@pytest.mark.parametrize("stops", [(6,), (4, 5, 11)])
def test_a_run_in_pieces_ends_bit_for_bit_where_one_piece_does(tmp_path, stops):
    whole = go(Numbers(), 13)
    for steps in (*stops, 13):
        checkpointer, loader, state = resume(tmp_path)
        state = go(loader, steps, state, checkpointer=checkpointer, checkpoint_steps=3)
        checkpointer.close()
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.mark.parametrize("folder", [True, False])
def test_a_loss_that_is_not_finite_stops_and_leaves_a_record(tmp_path, folder):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    with pytest.raises(NonFiniteLoss, match="loss/mean = nan, grad_norm/mean = nan at step 12") as error:
        go(
            Numbers(poison=12),
            40,
            checkpointer=checkpointer,
            checkpoint_steps=5,
            log_steps=4,
            folder=tmp_path if folder else None,
            describe_batch=lambda index: [f"row {i}" for i in index],
        )
    assert checkpointer.steps() == [5, 10]
    checkpointer.close()
    assert int(resume(tmp_path)[2].step) == 10
    if not folder:
        assert "pass `folder`" in str(error.value)
        return
    record = json.loads((tmp_path / "nonfinite.json").read_text())
    assert record["step"] == 12 and record["nonfinite"] == ["loss/mean", "grad_norm/mean"]
    assert record["metrics"]["loss/mean"] == "nan"
    assert record["batch"][:2] == ["row 96", "row 97"]
    assert record["samples"]["times"] == [12 * i for i in range(8)]


def test_the_index_is_recorded_as_it_is_without_a_description(tmp_path):
    with pytest.raises(NonFiniteLoss):
        go(Numbers(poison=3), 10, folder=tmp_path)
    batch = json.loads((tmp_path / "nonfinite.json").read_text())["batch"]
    assert batch == [24 + i for i in range(8)]


@pytest.mark.parametrize(
    "bad, words",
    [((2,), "at step 8, at t = 20;"), ((1, 5), "at step 8, of 2 times from t = 10 to 50;"), ((), "at step 8;")],
)
def test_the_times_that_are_not_finite_are_named(bad, words):
    def burst(state, frozen, batch, key):
        state, metrics = STEP(state, frozen, batch, key)
        losses = jnp.ones(8).at[jnp.array(bad, int)].set(jnp.nan)
        told = {"sample/loss": losses, "sample/t": 10.0 * jnp.arange(8)}
        return state, {**metrics, **told, "loss/mean": jnp.where(state.step == 8, jnp.nan, 1.0)}

    with pytest.raises(NonFiniteLoss, match=words):
        go(Numbers(), 20, step_fn=burst)


def test_a_gradient_that_is_not_finite_is_never_stored(tmp_path):
    checkpointer = Checkpointer(tmp_path)

    def burst(state, frozen, batch, key):
        state, metrics = STEP(state, frozen, batch, key)
        return state, {**metrics, "grad_norm/mean": jnp.where(state.step == 8, jnp.inf, 1.0)}

    with pytest.raises(NonFiniteLoss, match="grad_norm/mean = inf at step 8"):
        go(Numbers(), 20, step_fn=burst, checkpointer=checkpointer, checkpoint_steps=4)
    assert checkpointer.steps() == [4]
    checkpointer.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns(tmp_path, number, caplog, capsys):
    checkpointer = Checkpointer(tmp_path / "checkpoints")
    loader = Numbers()
    before = signal.getsignal(number)

    def step(state, frozen, batch, key):
        if loader.read == 7:
            os.kill(os.getpid(), number)
        return STEP(state, frozen, batch, key)

    with caplog.at_level(logging.WARNING):
        state = go(loader, 100, step_fn=step, checkpointer=checkpointer)
    assert int(state.step) == 7 and checkpointer.steps() == [7]
    assert f"stopped by {number.name} after step 7 of 100" in caplog.text
    assert "once more to leave at once" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    checkpointer.close()
    checkpointer, loader, state = resume(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, go(loader, 12, state), go(Numbers(), 12))


def test_a_second_signal_leaves_at_once():
    code = (
        "import os, signal\nfrom lcm_jax.train.interrupt import Interrupt\n"
        "with Interrupt() as stop:\n os.kill(os.getpid(), signal.SIGTERM)\n assert stop.requested\n"
        " os.kill(os.getpid(), signal.SIGTERM)\n print('never reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
    assert done.returncode == 128 + signal.SIGTERM and "never" not in done.stdout


def test_a_signal_outside_the_loop_is_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with Interrupt() as stop:
        assert not stop.requested and signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_save_that_fails_in_the_background_stops_the_run(tmp_path, monkeypatch):
    checkpointer = Checkpointer(tmp_path)

    def fail():
        raise CheckpointError("disk full")

    monkeypatch.setattr(checkpointer, "check", fail)
    with pytest.raises(CheckpointError, match="disk full"):
        go(Numbers(), 50, log_steps=5, checkpoint_steps=5, checkpointer=checkpointer)
    checkpointer.close()


def test_a_loader_that_ends_is_an_error():
    with pytest.raises(ValueError, match="ended at step 5 of 9"):
        go(Numbers(end=5), 9)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(steps=0),
        dict(steps=3, log_steps=0),
        dict(steps=3, checkpoint_steps=-1),
    ],
)
def test_counts_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match="must be at least 1"):
        go(Numbers(), **wrong)


def environment():
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}


def one_life(folder):
    """In a process of its own: go on where the folder stands, and print the parameters' bits at the end."""
    checkpointer, loader, state = resume(folder)
    print("started", int(state.step), flush=True)

    def tell(step, state, metrics):
        print("step", step, flush=True)

    loader.pause = 0.02  # time for the signal to arrive before the run is over
    state = go(
        loader, 60, state, checkpointer=checkpointer, checkpoint_steps=5, sample_steps=1, hooks=(tell,)
    )
    checkpointer.close()
    print("bits", b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(state)).hex(), flush=True)


def test_killed_five_times_a_run_ends_bit_for_bit_where_an_unbroken_one_does(tmp_path):
    command = [sys.executable, __file__]
    starts = []
    for kill_at in (7, 18, 26, 33, 47, None):
        life = subprocess.Popen(
            [*command, str(tmp_path / "broken")], stdout=subprocess.PIPE, text=True, env=environment()
        )
        for line in life.stdout:
            word, value = line.split()
            if word == "started":
                starts.append(int(value))
            if word == "step" and kill_at is not None and int(value) >= kill_at:
                life.send_signal(signal.SIGKILL)
                break
            if word == "bits":
                broken = value
        life.stdout.close()
        assert life.wait() == (0 if kill_at is None else -signal.SIGKILL)
    unbroken = subprocess.run(
        [*command, str(tmp_path / "whole")], capture_output=True, text=True, env=environment()
    )
    assert broken == unbroken.stdout.split()[-1]
    assert starts[0] == 0 and starts[-1] > 30 and starts == sorted(starts)


if __name__ == "__main__":
    one_life(Path(sys.argv[1]))
