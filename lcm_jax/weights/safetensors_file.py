"""Reads safetensors files lazily and writes nested dicts of arrays into them."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16, which the library asks it for
import numpy as np
from safetensors import SafetensorError, safe_open

from lcm_jax.weights.bijection import unflatten
from lcm_jax.weights.safetensors_stream import write_stream


class SafetensorsFile(Mapping[str, np.ndarray]):
    """A file as a mapping from key to array; an array is read when it is asked for.

    Raises FileNotFoundError for no file, ValueError for one that is truncated or of another format.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        try:
            self._file = safe_open(self.path, framework="numpy")
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file ({error}): save it again") from error
        self._keys = frozenset(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._keys:
            raise KeyError(f"{self.path} holds no tensor {key!r}")
        try:
            return self._file.get_tensor(key)
        except AttributeError as error:  # a type numpy has no name for, such as 8-bit floats
            raise ValueError(
                f"{self.path}: {key} is of a type that is not supported ({error}); take float16, bfloat16 or float32"
            ) from None

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._keys))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def paths(self) -> list[Path]:
        """The files that are read: this one."""
        return [self.path]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        return tuple(self._file.get_slice(key).get_shape())


def read_tree(path: str | os.PathLike) -> dict[str, Any]:
    """The nested dict of numpy arrays that `write_tree` wrote; FileNotFoundError, ValueError as above."""
    file = SafetensorsFile(path)
    return unflatten({tuple(key.split(".")): file[key] for key in file})


def write_tree(
    path: str | os.PathLike, tree: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a nested dict of arrays; names are joined by dots. The file appears complete or not at all.

    Raises ValueError for a name that is empty or holds a dot, and as `write_stream` does.
    """
    flat: dict[str, np.ndarray] = {}

    def visit(node: Mapping[str, Any], prefix: str) -> None:
        for name, child in node.items():
            if not name or "." in name:
                raise ValueError(f"name {name!r} under {prefix or 'the root'} is empty or dotted: rename it")
            if isinstance(child, Mapping):
                visit(child, f"{prefix}{name}.")
            else:
                flat[prefix + name] = np.asarray(child)

    visit(tree, "")
    write_stream(path, flat, flat.__getitem__, metadata)
