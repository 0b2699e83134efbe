"""A folder that an export makes: it appears whole or not at all, and replaces nothing but an earlier export."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CARD = "README.md"
_OURS = "model.json"
_SHARED = ("model_index.json", "*.safetensors")  # others write these, too: then the card must name us
_MARK = "lcm_jax"


@contextmanager
def new_folder(out: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """A scratch folder to write into, which becomes `out` when the block ends, and is gone where the block fails.

    Raises FileExistsError if `out` is there already (`overwrite` replaces an earlier export, nothing else).
    """
    out = Path(os.path.abspath(out))
    check_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield scratch
        scratch.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_free(out: Path, overwrite: bool) -> None:
    """Raises FileExistsError where an export would replace something else, or an export without `overwrite`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_export(out):
        raise FileExistsError(f"{out} exists and is no exported model: choose another --out")
    if not overwrite:
        raise FileExistsError(f"{out} holds an exported model: choose another --out, or give --overwrite")


def is_export(out: Path) -> bool:
    """Whether a folder is an export in any format, and no run."""
    if not (out / CARD).is_file() or (out / "checkpoints").exists():
        return False
    if (out / _OURS).exists():
        return True
    return any(any(out.glob(name)) for name in _SHARED) and _MARK in (out / CARD).read_text(errors="replace")


def check_space(parent: Path, needed: int) -> None:
    """Raises OSError if the disk of `parent`, or of the nearest folder above it, has fewer than `needed` bytes left."""
    while not parent.exists():
        parent = parent.parent
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"disk full: the export takes {needed / 1e6:,.1f} MB and {parent} has {free / 1e6:,.1f} MB; "
            "make room or export elsewhere"
        )
