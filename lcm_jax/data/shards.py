"""The latent-shard file: ArrayRecord records of one example each, a JSON head followed by raw array bytes."""

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

WRITER_OPTIONS = "group_size:1,zstd:1"  # one record a chunk: random access reads nothing it does not need
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def pack(head: dict, arrays: dict[str, np.ndarray]) -> bytes:
    """One record: uint32 head length, JSON head (with each array's dtype and shape), the arrays' bytes."""
    described = {name: [a.dtype.str, list(a.shape)] for name, a in arrays.items()}
    text = json.dumps({**head, "arrays": described}, ensure_ascii=False).encode()
    return b"".join([struct.pack("<I", len(text)), text, *(a.tobytes() for a in arrays.values())])


def unpack(record: bytes) -> tuple[dict, dict[str, np.ndarray]]:
    """The head and the arrays (read-only views of `record`) of one record."""
    (length,) = struct.unpack_from("<I", record)
    head = json.loads(record[4 : 4 + length])
    arrays, offset = {}, 4 + length
    for name, (dtype, shape) in head.pop("arrays").items():
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(record, np.dtype(dtype), count, offset).reshape(shape)
        offset += arrays[name].nbytes
    return head, arrays


def write(path: str | Path, records: Iterable[bytes]) -> None:
    """Write a shard under a temporary name, then move it into place: a shard that exists is a whole one."""
    path = Path(path)
    # A name of its own: a process believed dead that writes the same shard must not write into it.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    writer = ArrayRecordWriter(str(partial), WRITER_OPTIONS)
    try:
        for record in records:
            writer.write(record)
    finally:
        writer.close()
    os.replace(partial, path)


class Shard:
    """Random access to the records of one shard, opened at the first read; ValueErrors name the file."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._reader = None

    def read(self, positions: Sequence[int]) -> list[tuple[dict, dict[str, np.ndarray]]]:
        """Records by position in the shard, in the order asked for."""
        try:
            if self._reader is None:
                self._reader = ArrayRecordReader(str(self.path), READER_OPTIONS)
            return [unpack(r) for r in self._reader.read(list(positions))]
        except Exception as error:  # the reader raises RuntimeError, IndexError, ... by the kind of damage
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            message = f"shard {self.path} cannot be read ({reason}); encode the data set again with overwrite"
            raise ValueError(message) from error

    def read_all(self) -> list[tuple[dict, dict[str, np.ndarray]]]:
        """Every record in order."""
        return self.read(range(self.count()))

    def count(self) -> int:
        """Number of records in the file."""
        try:
            if self._reader is None:
                self._reader = ArrayRecordReader(str(self.path), READER_OPTIONS)
            return self._reader.num_records()
        except Exception as error:
            raise ValueError(
                f"shard {self.path} is missing, truncated or corrupt; encode it again"
            ) from error


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
