"""A self-describing folder of weights: model.json beside one safetensors file a network."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcm_jax.weights.json_file import read_object
from lcm_jax.weights.safetensors_file import write_tree

DESCRIPTION = "model.json"
DTYPES = ("float32", "float16", "bfloat16")


def write(
    folder: str | os.PathLike,
    description: Mapping[str, Any],
    trees: Mapping[str, Mapping[str, Any]],
    dtype: str = "float32",
) -> Path:
    """Writes `description` and every tree as NAME.safetensors in `dtype`; model.json comes last, so that a
    folder that has one is whole."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    for name, tree in trees.items():
        write_tree(folder / f"{name}.safetensors", cast(tree, dtype), {"format": "lcm_jax", "network": name})
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    return folder


def describe(folder: str | os.PathLike) -> dict[str, Any]:
    """The content of a folder's model.json; FileNotFoundError or ValueError say what is wrong with it."""
    path = Path(folder) / DESCRIPTION
    if not path.exists():
        raise FileNotFoundError(f"{folder} holds no {DESCRIPTION}: give a folder that launch.export wrote")
    return read_object(path, "export the model again")


def cast(node: Any, dtype: str, path: str = "") -> Any:
    """The tree with its floating-point leaves in `dtype`; ValueError for an unknown one or a value too large."""
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    if isinstance(node, Mapping):
        return {k: cast(v, dtype, f"{path}/{k}".lstrip("/")) for k, v in node.items()}
    array = np.asarray(node)
    if not jax.dtypes.issubdtype(array.dtype, np.floating):  # knows bfloat16, which numpy does not
        return array
    with np.errstate(over="ignore"):  # reported below, with its name
        small = array.astype(dtype)
    if np.isfinite(array).all() and not np.isfinite(small).all():
        raise ValueError(f"{path} reaches {np.abs(array).max():g}, too large for {dtype}: take bfloat16 or float32")
    return small


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
