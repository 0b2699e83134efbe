"""Chips one can rent and how they are put together, with the rates their makers state."""

import importlib.util
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax

GIB, GB = 2**30, 1e9


@dataclass(frozen=True)
class Chip:
    """Rates of one chip; of a host's processor none are stated."""

    name: str
    platform: str  # "tpu", "gpu" or "cpu"
    flops: float | None = None  # bfloat16 operations a second
    memory: int | None = None  # bytes
    bandwidth: float | None = None  # of that memory, bytes a second
    links: float | None = None  # bytes a second to other chips, one way, all links together
    dims: int = 1  # of a topology's shape
    source: str = ""


_TPU = "cloud.google.com/tpu/docs/"
CHIPS = {
    chip.name: chip
    for chip in (
        # The interconnect is stated for both ways together (v5p 1,200 GB/s) or in bits one way (v5e 1,600 Gbit/s).
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819 * GB, 200 * GB, 2, _TPU + "v5e"),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 3, _TPU + "v5p"),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1640 * GB, 400 * GB, 2, _TPU + "v6e"),
        # Dense rates of the SXM form; NVLink is stated for both ways together (900 and 600 GB/s).
        Chip("H100", "gpu", 989e12, 80 * 10**9, 3350 * GB, 450 * GB, 1, "NVIDIA H100 data sheet, SXM"),
        Chip("H200", "gpu", 989e12, 141 * 10**9, 4800 * GB, 450 * GB, 1, "NVIDIA H200 data sheet, SXM"),
        Chip("A100", "gpu", 312e12, 80 * 10**9, 2039 * GB, 300 * GB, 1, "NVIDIA A100 80 GB data sheet, SXM"),
        Chip("cpu", "cpu"),
    )
}
TPUS = {"v5 lite": "v5e", "v5e": "v5e", "v5p": "v5p", "v5": "v5p", "v6 lite": "v6e", "v6e": "v6e"}  # as jax calls them
EXAMPLES = "v5e:16x16, v5p:4x4x4, v6e:4x4, gpu:8xH100, cpu:8"


def of_kind(kind: str) -> Chip | None:
    """The chip that jax calls by that device_kind ("TPU v5 lite", "NVIDIA H100 80GB HBM3"); None if it is not known."""
    gpus = (name for name, chip in CHIPS.items() if chip.platform == "gpu" and f" {name}" in kind.replace("-", " "))
    return CHIPS.get(TPUS.get(kind.removeprefix("TPU ")) or next(gpus, ""))


@dataclass(frozen=True)
class Topology:
    """Chips of one kind; `shape` is that of a torus, or their number."""

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1  # of that shape each

    @property
    def count(self) -> int:
        """Chips in all."""
        return math.prod(self.shape) * self.slices

    def devices(self) -> Sequence[Any] | None:
        """Devices to compile for; None: as many of the host's own, which can at least be lowered for.

        Raises ValueError for a shape that the TPU's compiler does not know.
        """
        if self.chip.platform != "tpu" or not compiles_for_tpu():
            return None
        from jax.experimental import topologies

        try:
            return topologies.get_topology_desc(self.name, "tpu", num_slices=self.slices).devices
        except jax.errors.JaxRuntimeError as error:
            raise ValueError(f"no topology {self.name!r}: {str(error).partition(': ')[2]}") from error


def compiles_for_tpu() -> bool:
    """Whether the compiler of TPUs (the package libtpu) is installed; no TPU has to be there."""
    return importlib.util.find_spec("libtpu") is not None


def topology(name: str, slices: int = 1) -> Topology:
    """What a name such as `v5e:16x16`, `gpu:8xH100` or `cpu:8` stands for; ValueError lists the known."""
    kind, _, shape = name.partition(":")
    if match := re.fullmatch(r"gpu:(\d+)x(\w+)", name):
        shape, kind = match.groups()
    chip = CHIPS.get(kind)
    if chip is not None and (chip.platform == "gpu") != (match is not None):
        chip = None
    sizes = tuple(int(size) for size in shape.split("x")) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
    if chip is None or not sizes or not (len(sizes) == chip.dims or (chip.dims == 2 and sizes[2:] == (1,))):
        known = ", ".join(f"gpu:{c.name}" if c.platform == "gpu" else c.name for c in CHIPS.values())
        raise ValueError(f"--topology {name!r} is not known; write one like {EXAMPLES} (chips: {known})")
    return Topology(name, chip, sizes, slices)
