"""A trained model as a self-describing folder: safetensors and Flax msgpack weights, model.json, a model card."""

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from lcm_jax.export.model_card import model_card
from lcm_jax.typing import Params
from lcm_jax.weights import folder

SLACK = 2**20  # bytes the small files may take


def write(
    out: str | os.PathLike,
    description: Mapping[str, Any],
    networks: Mapping[str, Params],
    to_bytes: Callable[[Params], bytes] | None,
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Writes every network as NAME.safetensors and, by `to_bytes`, NAME.msgpack in `dtype`; model.json, README.md.

    The folder appears whole or not at all. Raises FileExistsError if it is there already (`overwrite` replaces
    an earlier export, nothing else), OSError if the disk cannot hold it, ValueError for weights beyond `dtype`.
    """
    out = Path(os.path.abspath(out))
    check_free(out, overwrite)
    small = {name: folder.cast(tree, dtype) for name, tree in networks.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    check_space(out.parent, 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(small)) + SLACK)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        for name, tree in small.items() if to_bytes else ():
            folder.write_bytes(scratch / f"{name}.msgpack", to_bytes(tree))
        folder.write_text(scratch / "README.md", model_card(out, description, small, dtype))
        folder.write(scratch, description, small, dtype)
        scratch.chmod(0o755)
        if out.exists():
            shutil.rmtree(out)
        scratch.rename(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return out


def check_free(out: Path, overwrite: bool) -> None:
    """Raises FileExistsError where the export would replace something else, or an export without `overwrite`."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    is_export = (out / folder.DESCRIPTION).exists() and (out / "README.md").exists()
    if not is_export or (out / "checkpoints").exists():
        raise FileExistsError(f"{out} exists and is no exported model: choose another --out")
    if not overwrite:
        raise FileExistsError(f"{out} holds an exported model: choose another --out, or give --overwrite")


def check_space(parent: Path, needed: int) -> None:
    """Raises OSError if the disk of `parent` has fewer than `needed` bytes left."""
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"disk full: the export takes {needed / 1e6:,.1f} MB and {parent} has {free / 1e6:,.1f} MB; "
            "make room or export elsewhere"
        )
