"""Reads tensors from PyTorch checkpoint files without PyTorch, through a pickle that may call almost nothing.

Both layouts: the zip archive (PyTorch 1.6 on) and the older stream of pickles followed by raw storages.
"""

import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_PROTOCOL = 1001
_MALFORMED = (  # what an unpickler meets in a damaged or foreign file
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Unpickler(pickle.Unpickler):
    """Knows ordered dicts, tensors and storages; any other global is refused by name."""

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # What is handed out must be immutable or fresh: a pickle may also try to set attributes on it.
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, stride, *_: _Tensor(storage, offset, shape, stride)
        if module == "torch" and name in _DTYPES:
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which a file of tensors has no need of")

    def persistent_load(self, saved: Any) -> _Storage:
        kind, name, key, _location, _count, *view = saved
        if kind != "storage" or any(v is not None for v in view):
            raise pickle.UnpicklingError(f"unknown kind of storage {saved!r}")
        return self.storages.setdefault(str(key), _Storage(str(key), _DTYPES[name]))


def read_torch(path: str | os.PathLike) -> Any:
    """What `torch.load` would give, with tensors as numpy arrays: usually a dict from key to array.

    Raises FileNotFoundError for no file, ValueError for a truncated one, one of another format, or one whose
    pickle asks for anything besides tensors (named in the message).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            return (_read_zip if zipfile.is_zipfile(file) else _read_stream)(file)
    except _MALFORMED as error:
        why = str(error) or type(error).__name__
        raise ValueError(f"{path} was not read as a PyTorch checkpoint: {why}; fetch it again") from error


def _read_zip(file: io.BufferedIOBase) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        root = next((n[: -len("data.pkl")] for n in names if n.endswith("data.pkl")), None)
        if root is None:
            raise ValueError("the archive holds no data.pkl")
        if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was saved on a big-endian machine")
        tree = _Unpickler(io.BytesIO(archive.read(f"{root}data.pkl"))).load()
        return _resolve(tree, lambda storage: archive.read(f"{root}data/{storage.key}"))


def _read_stream(file: io.BufferedIOBase) -> Any:
    file.seek(0)
    if _Unpickler(file).load() != _STREAM_MAGIC or _Unpickler(file).load() != _STREAM_PROTOCOL:
        raise ValueError("neither the zip nor the stream layout")
    if not _Unpickler(file).load().get("little_endian", True):
        raise ValueError("it was saved on a big-endian machine")
    unpickler = _Unpickler(file)
    tree = unpickler.load()
    keys = [str(key) for key in _Unpickler(file).load()]
    end = os.fstat(file.fileno()).st_size
    raw: dict[str, bytes] = {}
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        size = count * unpickler.storages[key].dtype.itemsize
        if not 0 <= size <= end - file.tell():
            raise EOFError(f"truncated within storage {key}")
        raw[key] = file.read(size)
    return _resolve(tree, lambda storage: raw[storage.key])


def _resolve(tree: Any, read: Callable[[_Storage], bytes]) -> Any:
    """The tree with its tensors as arrays."""
    if isinstance(tree, dict):
        return {k: _resolve(v, read) for k, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [_resolve(v, read) for v in tree]
    if isinstance(tree, _Tensor):
        return _array(tree, np.frombuffer(read(tree.storage), tree.storage.dtype))
    return tree


def _array(tensor: _Tensor, flat: np.ndarray) -> np.ndarray:
    # Sizes and strides come from the file: check that they stay inside the storage before trusting them.
    sizes = (tensor.offset, *tensor.shape, *tensor.stride)
    if len(tensor.shape) != len(tensor.stride) or any(not isinstance(n, int) or n < 0 for n in sizes):
        raise ValueError(f"tensor of shape {tensor.shape} has strides {tensor.stride}")
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, flat.dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride, strict=True))
    if last >= flat.size or math.prod(tensor.shape) > flat.size:
        raise ValueError(f"tensor of shape {tensor.shape} reaches past its storage of {flat.size} numbers")
    strides = [s * flat.itemsize for s in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], tensor.shape, strides).copy()
