"""What a measurement must say of where it was made: machine, processor, devices, versions and date."""

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from lcm_jax import __version__

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "numpy", "optax", "orbax-checkpoint", "grain")
GIB = 1024**3


def machine() -> dict[str, Any]:
    """JSON values; a package that is not installed has version None."""
    device = jax.devices()[0]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1),
        "device": {"kind": device.device_kind, "platform": device.platform, "count": jax.device_count()},
        "python": platform.python_version(),
        "versions": {"lcm_jax": __version__, **{name: version(name) for name in PACKAGES}},
    }


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def version(name: str) -> str | None:
    """A package's installed version."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
