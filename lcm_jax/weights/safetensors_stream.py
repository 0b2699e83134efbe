"""Writes a safetensors file tensor by tensor, so that no second copy of a network is held."""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - teaches numpy the name bfloat16
import numpy as np

_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ALIGNED = 8  # the header's length is a multiple of this


def write_stream(
    path: str | os.PathLike,
    layout: Mapping[str, Any],
    read: Callable[[str], np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes read(key) of every key of `layout`, whose values have the shape and dtype of what will come.

    The file appears complete or not at all. Raises ValueError for a type the format lacks and for an array that
    is not what `layout` said, OSError naming the file if it cannot be written.
    """
    path = Path(path)
    # Wide types first, which keeps every tensor aligned; then by name.
    keys = sorted(layout, key=lambda key: (-np.dtype(layout[key].dtype).itemsize, key))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for key in keys:
        shape, dtype = tuple(layout[key].shape), np.dtype(layout[key].dtype)
        if dtype.name not in _NAMES:
            raise ValueError(f"{path}: {key} is of type {dtype.name}; a safetensors file takes {', '.join(_NAMES)}")
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[key] = {"dtype": _NAMES[dtype.name], "shape": list(shape), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % _ALIGNED)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            file.write(struct.pack("<Q", len(head)) + head)
            for key in keys:
                array = np.asarray(read(key))
                if (array.shape, array.dtype) != (tuple(layout[key].shape), np.dtype(layout[key].dtype)):
                    raise ValueError(f"{path}: {key} came as {array.dtype} {array.shape}, unlike its description")
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
        scratch.replace(path)
    except OSError as error:
        raise OSError(f"{path} could not be written ({error}): make room on the disk, export again") from error
    finally:
        scratch.unlink(missing_ok=True)
