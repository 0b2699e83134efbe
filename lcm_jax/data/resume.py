"""How far an encoding came: what is known of finished shards, and whether the folder was made the same way."""

import hashlib
import json
import secrets
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from lcm_jax.data import manifest, shards
from lcm_jax.data.latent_stats import LatentStats

PROGRESS = "encoding.json"  # while an encoding is under way: its plan, its run, and shards that a manifest named before
NOTE = "{}.note.npz"  # beside a shard: that it is finished, and what the manifest needs of it
PARTIAL = ("*.array_record*.partial", "*.json.partial", "*.jsonl.partial", "*.npz.partial")  # what was being written
FAILED = "encoding_failed.json"  # which process of a run failed, and why
SIDES = (manifest.UNCONDITIONAL.format("*"), manifest.ROWS, manifest.ELEMENTS, manifest.SKIPPED)
OWN = ("*.array_record", *SIDES, NOTE.format("*"), *PARTIAL, FAILED)  # of a data set, besides manifest and progress


@dataclass(frozen=True)
class Note:
    """A finished shard, so that nobody has to read it again but to see that it is whole.

    `shapes` are those of an example's arrays, none of a shard without examples; like `stats` they are None where only
    a manifest tells of the shard.
    """

    bytes: int
    sha256: str
    skipped: dict[str, str]  # key -> reason of the pictures that were left out of it
    shapes: dict[str, tuple[int, ...]] | None = None
    stats: LatentStats | None = None

    @property
    def file(self) -> dict[str, Any]:
        """What the manifest says of the file."""
        return {"bytes": self.bytes, "sha256": self.sha256}


def begun(out: Path) -> bool:
    """Whether a folder holds a latent data set, finished or not."""
    return any((out / name).exists() for name in (manifest.FILE, PROGRESS))


def check_folder(out: Path) -> None:
    """Raises ValueError for a file, and for a folder that holds anything but a latent data set, finished or not."""
    if not out.exists() or begun(out):
        return
    if not out.is_dir():
        raise ValueError(f"{out} is a file: give a folder for the latent data set")
    names = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if foreign := [name for name in names if not any(fnmatch(name, pattern) for pattern in OWN)]:
        raise ValueError(f"{out} holds {foreign[0]!r}, which is of no latent data set: choose an empty folder")


def fingerprint(plan: dict) -> dict:
    """Hashes of the plan's parts: small enough for the manifest, enough to tell what differs."""
    return {
        k: hashlib.sha256(json.dumps(v, sort_keys=True).encode()).hexdigest()[:16] for k, v in plan.items()
    }


def number(plan: dict) -> int:
    """The plan as a number below 2^32."""
    return int(hashlib.sha256(json.dumps(fingerprint(plan), sort_keys=True).encode()).hexdigest()[:8], 16)


def begin(out: Path, plan: dict, known: Mapping[str, Note]) -> None:
    """Makes the folder an unfinished one in which a new run begins; what earlier runs left half written goes."""
    for pattern in PARTIAL:
        for path in out.glob(pattern):
            path.unlink()
    finished = {file: {**note.file, "skipped": note.skipped} for file, note in known.items()}
    content = {"plan": fingerprint(plan), "run": secrets.randbits(32), "finished": finished}
    manifest.write_text(out / PROGRESS, json.dumps(content, indent=1) + "\n")
    (out / manifest.FILE).unlink(missing_ok=True)


def known_shards(out: Path, plan: dict, keys: Mapping[str, Sequence[str]]) -> dict[str, Note]:
    """Shards that earlier runs finished, by file and in the order of `keys`, their pictures'; no shard is read.

    Raises ValueError, naming what differs, when the folder was made by another plan.
    """
    if (out / manifest.FILE).exists():
        earlier = manifest.read(out)
        made = earlier.plan
        finished = {s["file"]: {k: s[k] for k in ("bytes", "sha256")} for s in earlier.shards}
    elif (out / PROGRESS).exists():
        content = json.loads((out / PROGRESS).read_text(encoding="utf-8"))
        made, finished = content["plan"], content["finished"]
    else:
        return {}
    wanted = fingerprint(plan)
    different = [name for name in (wanted | made) if made.get(name) != wanted.get(name)]
    if different:
        differs = ", ".join(different)
        raise ValueError(
            f"{out} was made with other {differs}; choose another folder or encode with overwrite"
        )
    skipped = manifest.skipped(out)
    listed = {
        file: Note(**{"skipped": {key: skipped[key] for key in keys[file] if key in skipped}, **about})
        for file, about in finished.items()
    }
    found = {file: read(out, file) or listed.get(file) for file in keys}
    return {file: note for file, note in found.items() if note is not None}


def whole(out: Path, file: str, note: Note) -> bool:
    """Whether a shard is there and as it was finished."""
    path = out / file
    return path.exists() and path.stat().st_size == note.bytes and shards.sha256(path) == note.sha256


def write(out: Path, file: str, note: Note) -> None:
    """Notes in one move that a shard is finished; the shard must be in its place."""
    about = {**note.file, "skipped": note.skipped, "shapes": note.shapes}
    path = path_of(out, file)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as stream:
        np.savez(stream, about=np.array(json.dumps(about)), **note.stats.sums)
    partial.replace(path)


def read(out: Path, file: str) -> Note | None:
    """The note of a shard; None where there is none, or none that can be read."""
    try:
        with np.load(path_of(out, file), allow_pickle=False) as content:
            about = json.loads(content["about"].item())
            stats = LatentStats(int(content["count"]), content["mean"], content["square"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None
    about["shapes"] = {name: tuple(shape) for name, shape in about["shapes"].items()}
    return Note(**about, stats=stats)


def path_of(out: Path, file: str) -> Path:
    """Where the note of a shard lies."""
    return out / NOTE.format(file)


def tidy(out: Path) -> None:
    """Removes from a finished folder what only an unfinished one needs; the manifest must be written."""
    for pattern in (NOTE.format("*"), *PARTIAL):
        for path in out.glob(pattern):
            path.unlink()
    for name in (FAILED, PROGRESS):
        (out / name).unlink(missing_ok=True)


def clear(out: Path) -> None:
    """Remove every file of a latent data set from `out`, and nothing else."""
    (out / manifest.FILE).unlink(missing_ok=True)
    for pattern in ("*.array_record", *SIDES):
        for path in out.glob(pattern):
            path.unlink()
    tidy(out)
