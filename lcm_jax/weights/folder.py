"""A self-describing folder of weights: model.json beside one safetensors file a network."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lcm_jax.weights.safetensors_file import read_tree, write_tree

DESCRIPTION = "model.json"


def write(
    folder: str | os.PathLike,
    description: Mapping[str, Any],
    trees: Mapping[str, Mapping[str, Any]],
    dtype: str,
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
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export the model again") from None


def tree(folder: str | os.PathLike, name: str) -> dict[str, Any]:
    """One network's parameters as the nested dict of numpy arrays that was written."""
    path = Path(folder) / f"{name}.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"{folder} lacks {path.name}: the folder is incomplete, export it again")
    return read_tree(path)[0]


def cast(node: Any, dtype: str) -> Any:
    """The tree with its floating-point leaves in `dtype`."""
    if isinstance(node, Mapping):
        return {k: cast(v, dtype) for k, v in node.items()}
    array = np.asarray(node)
    return array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    with os.fdopen(handle, "w") as file:
        file.write(text)
    os.chmod(name, 0o644)
    os.replace(name, path)
