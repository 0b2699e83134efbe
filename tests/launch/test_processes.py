"""One run as two real processes, joined by Gloo: the same numbers, one stop, one checkpoint, any count goes on."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from lcm_jax import build, captions, joining, run_folder
from lcm_jax.data.loader import Loader
from lcm_jax.diffusion import coupling
from lcm_jax.parallel import rules
from lcm_jax.parallel.agreement import on_all
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import fetch, own_rows, place_batch
from lcm_jax.train.checkpoint import Checkpointer
from lcm_jax.train.loop import NonFiniteLoss
from lcm_jax.train.metrics import read

ROOT = Path(__file__).parents[2]
SMALL = 2000  # elements: so that networks as small as these are split, too
WHOLE, STOPPED = 5, 4  # steps of the undisturbed run; after which the signalled one stands
CLUSTER = ("-m", "launch.local_cluster", "--processes", "2")


class Recorded(Loader):
    """A loader whose rows are noted; at the read `ends` the process gets SIGTERM, at `poison` a NaN."""

    def __init__(self, loader, ends=None, poison=None):
        vars(self).update(vars(loader), ends=ends, poison=poison, index=[])

    def __next__(self):
        batch = super().__next__()
        self.index.append(batch["index"].tolist())
        if len(self.index) == self.ends:
            os.kill(os.getpid(), signal.SIGTERM)
        if len(self.index) == self.poison:
            batch["mean"] = np.where(np.arange(len(batch["mean"])) == 1, np.nan, batch["mean"].T).T.astype(np.float32)
        return batch


def work(root: Path) -> None:
    """What each of the two processes does, one thing after the other: starting one takes long."""
    captions.ENCODERS["minilm"] = tiny.FakeCaptions
    rules.SMALL = SMALL
    with joining.joined(timeout=60):
        second = jax.process_index() == 1
        found = {"devices": jax.device_count(), "local": jax.local_device_count()}
        mesh = make_mesh(2, 4)
        z0, eps = drawn(own_rows(mesh, 16))
        coupled, metrics = jax.jit(coupling.OptimalTransport())(*place_batch({"z0": z0, "eps": eps}, mesh).values())
        found |= {"coupled": fetch(coupled).tolist(), "gain": float(metrics["transport_gain/mean"])}
        found["whole"] = [arrives(mesh) for mesh in meshes()]

        config = json.loads((root / "lcd.json").read_text())
        run = build.run({**config, "steps": 50, "mesh": {"rules": "fsdp", "data": 2, "fsdp": 4}})
        kept = Recorded(run.loader, ends=STOPPED - 2 if second else None)
        state = run_folder.train(replace(run, loader=kept), root / "stopped", progress=False)
        found |= {"stopped": int(state.step), "index": kept.index}

        bad = Recorded(build.run(run.config).loader, poison=1 if second else None)
        try:
            run_folder.train(replace(run, loader=bad), root / "poisoned", progress=False)
        except NonFiniteLoss as error:
            found |= {"poisoned": str(error), "bad": bad.index}

        rename = os.replace
        os.replace = lambda a, b: (time.sleep(1) if str(b).endswith(".unreadable") else None, rename(a, b))[1]
        often = {"steps": WHOLE, "loop": {**run.config["loop"], "checkpoint_steps": 1}}
        again = replace(run, loader=build.run(run.config).loader, config={**run.config, **often})
        state = run_folder.train(again, root / "resumed", progress=False)
        leaves = jax.tree.leaves(state.params)
        found |= {"split": sum(not leaf.is_fully_replicated for leaf in leaves), "leaves": len(leaves)}
        (root / f"{jax.process_index()}.json").write_text(json.dumps(found))

        joining.FAREWELL = 1
        if on_all(True) and second:
            raise RuntimeError("the second process alone fails")
        on_all(True)  # the first waits for what never comes


def unwritable(root: Path) -> None:
    """A run of which the second process cannot write its part of the first checkpoint."""
    captions.ENCODERS["minilm"] = tiny.FakeCaptions
    rules.SMALL = SMALL
    joining.FAREWELL = 1
    if os.environ["JAX_PROCESS_ID"] == "1":

        def full(timeout=None):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        async def serialize(*_, **__):
            return [SimpleNamespace(result=full, cancel=lambda: None)]

        ocp.type_handlers.ArrayHandler.serialize = serialize
    config = json.loads((root / "lcd.json").read_text())
    often = {"loop": {"log_steps": 1, "checkpoint_steps": 2}, "mesh": {"rules": "fsdp", "fsdp": 8, "data": 1}}
    with joining.joined(timeout=60):
        run_folder.train(build.run({**config, **often}), root / "unwritable", progress=False)


def meshes():
    """Devices in order, as neighbours that share samples across the processes, and interleaved."""
    devices = jax.devices()
    yield make_mesh(8)
    yield make_mesh(2, 1, 4)
    yield make_mesh(1, 1, 8)
    yield make_mesh(4, 2, 1, devices=devices[::2] + devices[1::2])
    yield make_mesh(4, 1, 2, devices=[devices[i] for i in (0, 4, 1, 5, 2, 6, 3, 7)])


def arrives(mesh) -> int:
    """How many of 16 rows this process reads for a mesh on which they arrive whole and in order, else 0."""
    rows = own_rows(mesh, 16)
    batch = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    return len(rows) * bool((fetch(place_batch({"x": batch[rows]}, mesh)["x"]) == batch).all())


def drawn(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Those rows of 16 latents and of as much noise."""
    z0, eps = np.random.default_rng(0).normal(size=(2, 16, 2, 2, 4)).astype(np.float32)
    return z0[rows], eps[rows]


def flat(params) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def close(a, b) -> bool:
    return np.linalg.norm(np.subtract(a, b)) < 1e-5 * np.linalg.norm(b)


def losses(where: Path) -> list[float]:
    return [line["loss/mean"] for line in read(where / "metrics.jsonl")]


def trained(where: Path, step: int | None = None) -> np.ndarray:
    return flat(run_folder.load(where, step, "params")[1]["unet"])


def steps(where: Path) -> list[int]:
    keep = Checkpointer(where / "checkpoints", read_only=True)
    try:
        return keep.steps()
    finally:
        keep.close()


def turn_a_bit(checkpoint: Path) -> None:
    """In its largest file, whose hash one of the processes looks at."""
    file = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.fixture(scope="module")
def lcd(data):
    """The config of a distillation by plain gradient descent, as a process of its own reads it."""
    unet = replace(tiny.UNET, attention=(False,))  # half of it to compile
    teacher = tiny.model_folder(data.root / "plain_teacher", tiny.spec("diffusion", unet=unet), seed=1)
    objective = {"name": "lcd", "w_min": 0.0, "w_max": 4.0, "w_width": tiny.W_WIDTH}
    model = {"teacher": str(teacher), "w_width": tiny.W_WIDTH}
    return tiny.config(
        objective,
        model,
        data.latents,
        steps=WHOLE,
        optimizer={"name": "sgd", "rate": 0.01},
        loop={"log_steps": 1, "checkpoint_steps": 100, "sample_steps": 100},
    )


@pytest.fixture(scope="module")
def alone(lcd, data):
    """The run on one device, every step of it kept."""
    often = {"loop": {"log_steps": 1, "checkpoint_steps": 1}, "checkpoint": {"keep": 10}}
    run = build.run({**lcd, **often})
    kept = Recorded(run.loader)
    run_folder.train(replace(run, loader=kept), data.root / "alone", progress=False)
    return SimpleNamespace(run=data.root / "alone", index=kept.index)


@pytest.fixture(scope="module")
def two(lcd, alone, data):
    """What two processes of four devices made, one of them stopped; and of a run that one device began."""
    root = data.root / "two"
    begun = root / "resumed"
    shutil.copytree(alone.run, begun)
    shutil.rmtree(begun / "checkpoints" / str(WHOLE))
    turn_a_bit(begun / "checkpoints" / str(STOPPED))
    (root / "lcd.json").write_text(json.dumps(lcd))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, *CLUSTER, "--devices", "4", "--", sys.executable, __file__, str(root)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    said = [root / f"{i}.json" for i in range(2)]
    assert all(path.exists() for path in said), done.stderr[-4000:]
    return SimpleNamespace(root=root, done=done, said=[json.loads(path.read_text()) for path in said])


def test_two_processes_see_each_others_devices_and_read_one_batch(two, alone):
    assert [(said["devices"], said["local"]) for said in two.said] == [(8, 4), (8, 4)]
    batches = [a + b for a, b in zip(two.said[0]["index"], two.said[1]["index"], strict=True)]
    assert batches == alone.index[:STOPPED]
    assert two.said[0]["whole"] == two.said[1]["whole"] == [8, 8, 16, 8, 16]


def test_a_signal_to_one_process_stops_both_after_the_same_step_with_one_checkpoint(two):
    assert [said["stopped"] for said in two.said] == [STOPPED, STOPPED]
    assert steps(two.root / "stopped") == [STOPPED]
    assert "SIGTERM: finishing the step and saving" in two.done.stderr
    assert f"stopped by a signal to another process after step {STOPPED} of 50" in two.done.stderr


def test_two_processes_do_what_one_device_does(two, alone):
    assert close(losses(two.root / "stopped"), losses(alone.run)[:STOPPED])
    assert close(trained(two.root / "stopped"), trained(alone.run, STOPPED))
    assert not close(trained(two.root / "stopped"), trained(alone.run, 1))  # there was something to agree on


def test_one_process_goes_on_where_two_stopped(two, alone, lcd):
    run = build.run({**lcd, "loop": {"log_steps": 1}})
    kept = Recorded(run.loader)
    run_folder.train(replace(run, loader=kept), two.root / "stopped", progress=False)
    assert kept.index == alone.index[STOPPED:]
    assert close(losses(two.root / "stopped"), losses(alone.run))
    assert close(trained(two.root / "stopped"), trained(alone.run))


def test_two_processes_go_on_where_one_stopped(two, alone):
    assert two.said[0]["split"] > 5
    assert close(losses(two.root / "resumed"), losses(alone.run))
    assert close(trained(two.root / "resumed"), trained(alone.run))
    assert "is not what was written" in two.done.stderr  # one process found the turned bit
    assert "cannot be read by another process" in two.done.stderr
    assert two.done.stderr.count(f"going on from the last good checkpoint {two.root}/resumed") == 2
    (sheet,) = (two.root / "resumed" / "samples").iterdir()  # drawn by both, written by one
    assert sheet.name == f"step_{WHOLE:07d}.png"


def test_a_loss_that_is_not_finite_stops_both_and_leaves_a_record_of_the_whole_batch(two):
    assert two.said[0]["poisoned"] == two.said[1]["poisoned"]
    assert "loss/mean = nan" in two.said[0]["poisoned"] and "at step 1" in two.said[0]["poisoned"]
    record = json.loads((two.root / "poisoned" / "nonfinite.json").read_text())
    loss = record["samples"]["sample/loss"]
    assert len(record["batch"]) == len(loss) == 8 and [i for i, x in enumerate(loss) if not np.isfinite(x)] == [5]
    assert steps(two.root / "poisoned") == []


def test_where_one_process_fails_alone_all_end(two):
    assert two.done.returncode == 1
    assert "[1] RuntimeError: the second process alone fails" in two.done.stderr


def test_optimal_transport_couples_the_batch_of_both(two):
    alone, metrics = coupling.OptimalTransport()(*map(jnp.asarray, drawn(np.arange(16))))
    np.testing.assert_array_equal(np.asarray(two.said[0]["coupled"], np.float32), alone)
    assert two.said[0]["gain"] == pytest.approx(float(metrics["transport_gain/mean"]), rel=1e-5)
    assert two.said[0]["gain"] > 0.05


def test_where_one_process_cannot_write_its_part_all_end_soon(two):
    """In orbax each would wait ten minutes for the other."""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, *CLUSTER, "--devices", "4", "--", sys.executable, __file__, str(two.root), "unwritable"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1
    assert "[1] lcm_jax.train.checkpoint.CheckpointError: a checkpoint could not be written to" in done.stderr
    assert "No space left on device" in done.stderr and steps(two.root / "unwritable") == []


if __name__ == "__main__":
    {"unwritable": unwritable}.get(sys.argv[-1], work)(Path(sys.argv[1]))
