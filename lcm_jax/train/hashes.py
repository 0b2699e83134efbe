"""Hashes of a checkpoint's files, kept beside them: a bit that turns on a disk is no reason for another model."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILE = "hashes.json"
STAMPED = "_CHECKPOINT_METADATA"  # to which orbax adds the time when it commits
THREADS = 4  # hashing lets other threads run


def write(folder: Path) -> None:
    """Hashes every file of a checkpoint that is about to be committed."""
    (folder / FILE).write_text(json.dumps(_hashes(folder, _files(folder)), indent=0), encoding="utf-8")


def changed(folder: Path, share: int = 0, of: int = 1) -> str | None:
    """The first file that is not what it was, None if all are or none was hashed; of every `of` files one is read."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return FILE
    names = sorted(kept)[share::of]
    if missing := [name for name in names if not (folder / name).is_file()]:
        return missing[0]
    now = _hashes(folder, names)
    return next((name for name in names if now[name] != kept[name]), None)


def _files(folder: Path) -> list[str]:
    names = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != STAMPED)


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    def of(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(of, names), strict=True))
