"""The device mesh: three axes, data, fsdp and tensor, over all devices of all processes."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

log = logging.getLogger(__name__)
AXES = ("data", "fsdp", "tensor")


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int | None = None,
    fsdp_most: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Mesh of axes (data, fsdp, tensor) over `devices` (all of them if None); one size may be -1: the rest.

    With `fsdp_most` both data and fsdp may be -1: fsdp takes as much of the rest as divides it and is at most that,
    data what remains. `slices` is how many groups of devices are joined by a slower network (pod slices, or processes):
    the data axis alone crosses it. None: as many as the devices say they belong to.
    Raises ValueError if the sizes do not multiply to the number of devices, or slices do not divide the data axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    if fsdp_most is not None and data == fsdp == -1:
        fsdp = most_within_a_slice(devices, fsdp_most, tensor, slices)
    sizes = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    asked = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise ValueError(f"mesh sizes ({asked}) must be positive, with at most one of them -1")
    known = math.prod(size for size in sizes.values() if size != -1)
    if free and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh sizes ({asked}) do not multiply to the {len(devices)} devices present; "
            "set one of them to -1 or choose sizes whose product is the number of devices"
        )
    # Auto axes: the compiler propagates shardings; the default (Explicit) types them instead.
    return Mesh(arrange(devices, tuple(sizes.values()), slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def most_within_a_slice(devices: Sequence[Any], most: int, tensor: int, slices: int | None) -> int:
    """The largest size of the fsdp axis up to `most` at which no weight is split across slices.

    Raises ValueError for a `most` below 1.
    """
    if most < 1:
        raise ValueError(f"config.mesh.fsdp_most must be at least 1, not {most}")
    groups = slices or len({getattr(device, "slice_index", None) for device in devices})
    rest = max(len(devices) // groups // max(tensor, 1), 1)
    return max(size for size in range(1, min(most, rest) + 1) if rest % size == 0)


def arrange(devices: Sequence[Any], sizes: tuple[int, int, int], slices: int | None) -> np.ndarray:
    """The devices [data, fsdp, tensor], neighbours in the torus along the inner axes; slices follow each other in data.

    Raises ValueError where `slices` is neither the number of slices the devices belong to nor that of processes, or
    does not divide the data axis.
    """
    data, *inner = sizes
    found = len({getattr(device, "slice_index", None) for device in devices})
    processes = len({device.process_index for device in devices})
    if slices is None and data % found:  # nobody asked: fast links cannot be had for all of fsdp and tensor
        log.warning("data=%d does not divide over %d slices: fsdp or tensor crosses the network between", data, found)
        return np.array(sorted(devices, key=lambda d: (d.slice_index, d.id))).reshape(sizes)
    count = found if slices is None else slices
    if count not in (1, found, processes):
        raise ValueError(
            f"config.mesh.slices is {count}, but the devices belong to {found} slices and {processes} processes: "
            "give one of these numbers, or leave it out"
        )
    if data % count:
        raise ValueError(f"config.mesh.slices {count} does not divide the data axis of {data}, which alone crosses it")
    # A torus axis may be shared by two of ours: of 4 x 4 x 4 chips, say, a mesh of 32 x 2.
    if count == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return mesh_utils.create_hybrid_device_mesh(
        (data // count, *inner),
        (count, 1, 1),
        devices,
        process_is_granule=count != found,
        allow_split_physical_axes=True,
    )
