"""Reads the tensors of a TorchScript archive without PyTorch: its modules become names, its code is never looked at."""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lcm_jax.weights import torch_pickle

_CODE = "__torch__."  # prefix of the classes that the archive's own code defines


class _Module:
    """A saved module: its attributes by name, and nothing that a pickle could call or replace."""

    __slots__ = ("attributes",)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError(f"a module's state is a {type(state).__name__}, no dict")
        self.attributes = state


class _Unpickler(torch_pickle._Unpickler):
    """Knows, beside tensors, classes of the archive (all as `_Module`) and lists of plain values."""

    def find_class(self, module: str, name: str) -> Any:
        # A fresh class or function each time, as a pickle may try to set attributes on what it is handed.
        if f"{module}.".startswith(_CODE):
            return type(name, (_Module,), {"__slots__": ()})
        if module == "torch.jit._pickle" and name.startswith("build_"):  # build_intlist and the like
            return lambda values: list(values)
        return super().find_class(module, name)


def read_torchscript(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Parameters and buffers of the saved module by PyTorch's dotted names, as numpy arrays.

    Raises FileNotFoundError for no file, ValueError for one that is truncated, no TorchScript archive, or whose
    pickle asks for anything besides its own modules and tensors (named in the message).
    """
    path = Path(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            root = _root(archive.namelist())
            if root is None:
                raise ValueError("it is no TorchScript archive")
            names = archive.namelist()
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise ValueError("it was saved on a big-endian machine")
            whole = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
            if not isinstance(whole, _Module):
                raise ValueError("it holds no module")
            tensors = dict(_tensors(whole, "", 0))
            return torch_pickle._resolve(tensors, lambda storage: archive.read(f"{root}data/{storage.key}"))
    except torch_pickle._MALFORMED as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} was not read as a TorchScript archive: {why}; fetch it again") from error


def is_torchscript(path: str | os.PathLike) -> bool:
    """Whether a file is laid out as TorchScript saves it, code beside data; an ordinary checkpoint has no code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return _root(archive.namelist()) is not None


def _root(names: list[str]) -> str | None:
    """The folder inside the archive that everything lies in, with its slash; None for another kind of archive."""
    root = next((name[: -len("data.pkl")] for name in names if name.endswith("data.pkl")), None)
    return root if root is not None and any(name.startswith(f"{root}code/") for name in names) else None


def _tensors(module: _Module, prefix: str, depth: int) -> Iterator[tuple[str, torch_pickle._Tensor]]:
    if depth > 64:  # a module may hold itself only in a file made by hand
        raise ValueError("its modules lie more than 64 deep")
    for name, value in module.attributes.items():
        if isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.", depth + 1)
        elif isinstance(value, torch_pickle._Tensor):
            yield f"{prefix}{name}", value
