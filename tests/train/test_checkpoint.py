import gc
import logging
import os
import resource
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.rules import infer, with_shardings
from lcm_jax.train import hashes
from lcm_jax.train.checkpoint import Checkpointer, CheckpointError
from lcm_jax.train.state import State


def make_state(step=0, width=4, dtype=jnp.float32, target=False):
    params = {"conv": {"kernel": jnp.full((3, width), step + 0.5, dtype)}, "bias": jnp.arange(4.0) * step}
    return State(
        step=jnp.int32(step),
        params=params,
        target=params if target else None,
        ema=jax.tree.map(lambda x: x + 1, params),
        opt_state=({"mu": params}, (), [jnp.int32(step)]),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save_all(folder, steps, **kwargs):
    checkpointer = Checkpointer(folder, **kwargs)
    for step in steps:
        checkpointer.save(step, make_state(step), {"read": step * 8}, {"loss/mean": abs(step - 20)})
    checkpointer.close()


@pytest.mark.parametrize("target", [False, True])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, target):
    state = make_state(7, target=target)
    checkpointer = Checkpointer(tmp_path, about={"config": "abc"})
    checkpointer.save(7, state, {"read": 56})
    checkpointer.close()
    step, found, position, about = Checkpointer(tmp_path).restore(abstract(make_state(target=target)))
    assert (step, position, about) == (7, {"read": 56}, {"config": "abc"})
    assert (found.target is None) == (not target)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)


def test_the_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    checkpointer = Checkpointer(tmp_path)
    state = {"w": jnp.arange(2_000_000.0)}
    checkpointer.save(1, state)
    jax.block_until_ready(overwrite(state))
    checkpointer.close()
    found = Checkpointer(tmp_path).restore({"w": jax.ShapeDtypeStruct((2_000_000,), jnp.float32)})
    np.testing.assert_array_equal(found.state["w"], np.arange(2_000_000, dtype=np.float32))


def test_a_sharded_state_can_move_to_another_mesh(tmp_path):
    shapes = {"w": jax.ShapeDtypeStruct((256, 128), jnp.float32)}
    eight = infer(shapes, "fsdp", make_mesh(fsdp=8))
    state = jax.device_put({"w": jnp.arange(256.0 * 128).reshape(256, 128)}, eight)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, state)
    checkpointer.close()
    for mesh in (make_mesh(data=4, fsdp=2), make_mesh(devices=jax.devices()[:1])):
        shardings = infer(shapes, "fsdp", mesh)
        found = Checkpointer(tmp_path).restore(with_shardings(shapes, shardings)).state["w"]
        assert found.sharding == shardings["w"]
        np.testing.assert_array_equal(found, state["w"])


def test_the_newest_and_the_best_are_kept(tmp_path):
    save_all(tmp_path, [10, 20, 30, 40, 50], keep=2, best_metric="loss/mean")
    checkpointer = Checkpointer(tmp_path, best_metric="loss/mean", read_only=True)
    assert checkpointer.steps() == [20, 40, 50]
    assert checkpointer.best_step() == 20


def test_a_metric_that_no_checkpoint_has_is_said(tmp_path, caplog):
    save_all(tmp_path, [10], best_metric="los")
    assert "checkpoint of step 10 cannot be the best by 'los': it has loss/mean" in caplog.text


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert Checkpointer(tmp_path).restore(abstract(make_state())) is None
    with pytest.raises(CheckpointError, match="no checkpoint in "):
        Checkpointer(tmp_path).restore_part("ema", {})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Checkpointer(tmp_path / "nowhere", read_only=True)


def test_one_part_for_sampling_in_half_precision(tmp_path):
    save_all(tmp_path, [3, 5], about={"model": {"width": 4}})
    checkpointer = Checkpointer(tmp_path, read_only=True)
    assert checkpointer.describe_step() == {"model": {"width": 4}}
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), make_state().ema)
    found = checkpointer.restore_part("ema", wanted, step=3)
    assert found["conv"]["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["conv"]["kernel"].astype(np.float32), np.full((3, 4), 4.5))
    with pytest.raises(CheckpointError, match="holds no 'emma'"):
        checkpointer.restore_part("emma", wanted)
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 4 .* it has \[3, 5\]"):
        checkpointer.restore_part("ema", wanted, step=4)


@pytest.mark.parametrize(
    "other, says",
    [
        (dict(width=6), r"architecture: 'ema/conv/kernel' is \[3, 4\] there and \[3, 6\] here"),
        (dict(target=True), r"architecture: 'target/bias' is absent there and \[4\] here"),
        (dict(dtype=jnp.bfloat16), r"precision: 'ema/conv/kernel' is float32 there and bfloat16 here"),
    ],
)
def test_another_architecture_is_one_line_with_the_first_difference(tmp_path, other, says):
    save_all(tmp_path, [1, 2])
    with pytest.raises(CheckpointError, match=says) as error:
        Checkpointer(tmp_path).restore(abstract(make_state(**other)))
    assert "\n" not in str(error.value)


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


# A reader that fails leaves its sister coroutines unawaited; Python says so when they are collected.
UNAWAITED = "ignore::pytest.PytestUnraisableExceptionWarning"


@pytest.fixture
def collected():
    yield
    gc.collect()


@pytest.mark.filterwarnings(UNAWAITED)
@pytest.mark.parametrize("damage", ["half", "empty", "gone", "zeros"])
@pytest.mark.parametrize("where", ["state/ocdbt.process_0/d", "state", "about"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_last_good(tmp_path, damage, where, caplog, collected):
    def noise(step):
        return jax.random.normal(jax.random.key(step), (3, 1000))  # too long to be kept inline

    checkpointer = Checkpointer(tmp_path)
    for step in (10, 20, 30):
        checkpointer.save(step, {"noise": noise(step)})
    checkpointer.close()
    shapes = {"noise": jax.ShapeDtypeStruct((3, 1000), jnp.float32)}
    for path in (tmp_path / "30" / where).iterdir():
        if path.is_dir() or path.name == "commit_success.txt":
            continue
        blob = path.read_bytes()
        if damage == "gone":
            path.unlink()
        else:
            left = {"half": blob[: len(blob) // 2], "empty": b"", "zeros": bytes(len(blob))}
            path.write_bytes(left[damage])
    checkpointer = Checkpointer(tmp_path, keep=2)
    with caplog.at_level(logging.WARNING):
        found = checkpointer.restore(shapes)
    assert found.step == 20
    np.testing.assert_array_equal(found.state["noise"], noise(20))
    assert "30 cannot be read" in caplog.text and "last good checkpoint" in caplog.text
    with pytest.raises(CheckpointError, match="/30 cannot be read"):
        checkpointer.restore(shapes, step=30)
    # The run goes on: the same number can be written again, and the damaged one is not counted as kept.
    checkpointer.save(25, {"noise": noise(25)})
    checkpointer.save(30, {"noise": noise(30)})
    checkpointer.close()
    checkpointer = Checkpointer(tmp_path)
    assert checkpointer.steps() == [25, 30]
    np.testing.assert_array_equal(checkpointer.restore(shapes).state["noise"], noise(30))
    assert (tmp_path / "30.unreadable").is_dir()


def test_a_bit_that_has_turned_is_noticed_in_every_file(tmp_path, caplog):
    save_all(tmp_path, [10, 20])
    shapes = abstract(make_state())
    files = [file for file in files_of(tmp_path / "20") if file.name not in ("commit_success.txt", hashes.STAMPED)]
    assert len(files) > 8 and Path(hashes.FILE) in files
    for file in files:
        path = tmp_path / "20" / file
        good = path.read_bytes()
        turned = bytearray(good)
        turned[len(good) // 2] ^= 4
        path.write_bytes(turned)
        checkpointer = Checkpointer(tmp_path, read_only=True)
        assert checkpointer.restore(shapes).step == 10
        for read in (checkpointer.describe_step, lambda: checkpointer.restore_part("ema", shapes.ema)):  # noqa: B023
            with pytest.raises(CheckpointError, match="/20 cannot be read: .* is not what was written"):
                read()
        checkpointer.close()
        path.write_bytes(good)
    assert caplog.text.count("is not what was written") == len(files)
    (tmp_path / "20" / hashes.FILE).unlink()  # of before hashes were kept: there is nothing to compare with
    assert Checkpointer(tmp_path, read_only=True).restore(shapes).step == 20


@pytest.mark.filterwarnings(UNAWAITED)
def test_no_file_of_a_checkpoint_can_be_cut_without_notice(tmp_path, collected):
    save_all(tmp_path, [10, 20])
    noticed = set()
    for name in files_of(tmp_path / "20"):
        path = tmp_path / "20" / name
        blob = path.read_bytes()
        path.write_bytes(blob[: len(blob) // 2])
        found = Checkpointer(tmp_path, read_only=True).restore(abstract(make_state()))
        path.write_bytes(blob)
        # Either the cut is noticed, or the file does not carry the state (a sharding note, a time).
        jax.tree.map(np.testing.assert_array_equal, found.state, make_state(found.step))
        if found.step == 10:
            noticed.add(name.name)
    assert {"manifest.ocdbt", "_METADATA", "metadata"} <= noticed


@pytest.mark.filterwarnings(UNAWAITED)
def test_nothing_readable_is_an_error_and_not_a_fresh_start(tmp_path, collected):
    save_all(tmp_path, [10])
    for name in files_of(tmp_path / "10" / "state"):
        (tmp_path / "10" / "state" / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="nothing readable in .*/10 cannot be read"):
        Checkpointer(tmp_path).restore(abstract(make_state()))


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    save_all(tmp_path, [10])
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(100, 90, 10))
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match="step 20 could not be written .* disk full.* intact"):
        checkpointer.save(20, make_state(20))
    checkpointer.close()
    assert Checkpointer(tmp_path).restore(abstract(make_state())).step == 10


def full_disk(folder):
    """In a process of its own: no file may grow past 64 KB, as on a disk that fills up half-way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
    checkpointer = Checkpointer(folder)
    state = {"w": jax.random.normal(jax.random.key(0), (1_000_000,))}
    try:
        checkpointer.save(20, state)
        checkpointer.wait()
    except CheckpointError as error:
        print(f"CheckpointError: {error}", flush=True)
        os._exit(3)
    os._exit(0)


def test_a_disk_that_fills_up_while_saving_leaves_the_earlier_checkpoints(tmp_path):
    small = {"w": jnp.zeros(1_000_000)}
    checkpointer = Checkpointer(tmp_path, keep=1)
    checkpointer.save(10, small)
    checkpointer.close()
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    print(done.stdout)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "could not be written" in done.stdout and "make room on the disk" in done.stdout
    found = Checkpointer(tmp_path).restore(abstract(small))
    assert found.step == 10


def test_a_folder_opened_for_reading_is_not_written(tmp_path):
    save_all(tmp_path, [1])
    with pytest.raises(CheckpointError, match="reading only"):
        Checkpointer(tmp_path, read_only=True).save(2, make_state(2))


def test_a_position_that_is_not_json_is_refused(tmp_path):
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(CheckpointError, match="must be JSON"):
        checkpointer.save(1, make_state(), b"bytes")
    checkpointer.close()


def test_broken_metrics_of_one_checkpoint_cost_no_other(tmp_path, caplog):
    save_all(tmp_path, [10, 20, 30], keep=2, best_metric="loss/mean")
    (broken,) = (tmp_path / "20").rglob("metrics/metrics")
    broken.write_text(broken.read_text()[:-4])
    checkpointer = Checkpointer(tmp_path, keep=2, best_metric="loss/mean", read_only=True)
    assert checkpointer.steps() == [20, 30] and checkpointer.best_step() == 30
    checkpointer.close()
    assert "the metrics of checkpoint 20 cannot be read" in caplog.text


@pytest.mark.parametrize("wrong", [dict(keep=0), dict(best_mode="least")])
def test_wrong_settings_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match="must be"):
        Checkpointer(tmp_path, **wrong)


if __name__ == "__main__":
    full_disk(sys.argv[1])
