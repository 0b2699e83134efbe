"""The one transfer in: this process's part of a batch becomes global arrays split over the data axes."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

BATCH_AXES = ("data", "fsdp")  # fsdp devices see different samples too; only tensor devices share them


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading dim over data and fsdp, everything else whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_batch(batch: Mapping[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays [B, ...] from this process's numpy arrays [B / processes, ...]; the rest stays behind.

    Entries that are not numpy arrays of numbers (names, captions) are for the host only.
    Raises ValueError if the batch does not divide over the devices that share it.
    """
    sharding = batch_sharding(mesh)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    placed = {}
    for name, value in batch.items():
        if not (isinstance(value, np.ndarray) and value.dtype.kind not in "OSUM"):
            continue
        total = value.shape[0] * jax.process_count()
        if total % parts:
            raise ValueError(
                f"batch entry '{name}' has {total} samples, which {parts} devices (data x fsdp) cannot share "
                f"equally; make the batch size a multiple of {parts}"
            )
        placed[name] = jax.make_array_from_process_local_data(sharding, value)
    return placed


def place_array(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A global array of one that every process has whole; each device is given its own part only."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A full copy of every leaf on every device: frozen networks that fit, keys, counters."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
