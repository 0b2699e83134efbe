"""Encoding by two real processes: the folder of one, and what is left of it when one of them gets SIGKILL."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny

from lcm_jax import captions, encoding, joining
from lcm_jax.data import manifest, resume, shards

ROOT = Path(__file__).parents[2]
CLUSTER = ("-m", "launch.local_cluster", "--processes", "2")
KILLED = 137  # status of a process that SIGKILL ended, as shells count


def encode(autoencoder, pictures, out):
    """24 pictures in shards of 2."""
    return encoding.encode(autoencoder, "image_folder", {"folder": str(pictures)}, out, 2, 2, progress=False)


def work(autoencoder: Path, pictures: Path, root: Path) -> None:
    """What each process does: a folder in peace, and one in which the second dies while it writes its third shard."""
    captions.ENCODERS["minilm"] = tiny.FakeCaptions
    with joining.joined(timeout=60):
        encode(autoencoder, pictures, root / "whole")
        written, write = [], shards.write

        def dies(path, records):
            written.append(path)
            last = os.environ["JAX_PROCESS_ID"] == "1" and len(written) == 3
            write(path, (killed() if last else record for record in records))

        shards.write = dies
        encode(autoencoder, pictures, root / "broken")


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def two(data):
    root = data.root / "encoded_together"
    root.mkdir()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    about = [str(path) for path in (data.autoencoder, data.pictures, root)]
    command = [sys.executable, *CLUSTER, "--", sys.executable, __file__, *about]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert (root / "broken").exists(), done.stderr[-4000:]
    return SimpleNamespace(root=root, done=done)


def test_two_processes_make_the_folder_of_one(two, data):
    made = encode(data.autoencoder, data.pictures, two.root / "alone")
    assert len(made.shards) > 10 and content(two.root / "whole") == content(two.root / "alone")


def test_where_one_is_killed_all_end_and_one_process_goes_on_to_the_same_folder(two, data):
    assert two.done.returncode == KILLED
    broken = two.root / "broken"
    assert not (broken / manifest.FILE).exists() and list(broken.glob("*.partial"))
    finished = [path for path in broken.glob("*.array_record") if resume.path_of(broken, path.name).exists()]
    kept = {path: path.stat().st_mtime_ns for path in finished}
    assert len(kept) >= 2
    encode(data.autoencoder, data.pictures, broken)
    assert content(broken) == content(two.root / "whole")
    assert kept == {path: path.stat().st_mtime_ns for path in kept}  # what was finished was not made again


if __name__ == "__main__":
    work(*map(Path, sys.argv[1:]))
