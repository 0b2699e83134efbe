"""The one transfer in, a process's part of a batch as global arrays split over the data axes; and arrays fetched."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # fsdp devices see different samples too; only tensor devices share them


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dim over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def own_rows(mesh: Mesh, total: int) -> np.ndarray:
    """Which of a global batch's `total` rows this process reads: those that its own devices are given, int64, rising.

    Processes that share samples (an axis `tensor` that spans them) read the same rows. Whatever the order of the
    devices, row i of the global array is row i of the batch. Raises ValueError if rows do not divide over devices.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if total % parts:
        raise ValueError(
            f"a batch has {total} samples, which {parts} devices (data x fsdp) cannot share "
            f"equally; make the batch size a multiple of {parts}"
        )
    size = total // parts
    return np.concatenate([np.arange(start, start + size) for start in own_starts(mesh, total)])


def own_starts(mesh: Mesh, total: int) -> list[int]:
    """The first rows of the distinct parts of a global batch that lie on this process's devices, rising."""
    found = batch_sharding(mesh).addressable_devices_indices_map((total,)).values()
    return sorted({rows.start or 0 for (rows,) in found})


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's numpy arrays of its `own_rows`; the rest stays behind.

    Entries that are not numpy arrays of numbers (names, captions) are for the host only.
    Raises ValueError if the batch does not divide over the devices that share it.
    """
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    own = len(own_starts(mesh, parts))
    placed = {}
    for name, value in batch.items():
        if not (isinstance(value, np.ndarray) and value.dtype.kind not in "OSUM"):
            continue
        if value.shape[0] % own:
            raise ValueError(
                f"batch entry '{name}' has {value.shape[0]} samples, which {own} devices (data x fsdp) cannot share "
                f"equally; make the batch size a multiple of {parts}"
            )
        size = value.shape[0] // own
        shape = (size * parts, *value.shape[1:])
        first = {start: i * size for i, start in enumerate(own_starts(mesh, shape[0]))}
        part = lambda index, value=value, first=first, size=size: value[(at := first[index[0].start or 0]) : at + size]
        placed[name] = jax.make_array_from_callback(shape, sharding, part)
    return placed


def place_array(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array of one that every process has whole; each device is given its own part only."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A full copy of every leaf on every device: frozen networks that fit, keys, counters."""
    sharding = NamedSharding(mesh, PartitionSpec())
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def copied(leaf: Any) -> jax.Array:  # device_put would send every leaf around, to see that all have the same
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(copied(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return place_array(np.asarray(leaf), sharding)

    return jax.tree.map(copied, tree)


def fetch(array: Any) -> np.ndarray:
    """The whole of an array on the host; where it spans processes, all of them must call this."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
