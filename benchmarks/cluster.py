"""Several processes on this machine, started as a user starts them."""

import sys
from collections.abc import Sequence
from pathlib import Path


def together(processes: int, python: Sequence[str], devices: int = 1) -> list[str]:
    """launch.local_cluster around that many of `python ...`."""
    cluster = [sys.executable, "-m", "launch.local_cluster", f"--processes={processes}", f"--devices={devices}"]
    return [*cluster, "--", sys.executable, *python]


def children(parent: int) -> list[int]:
    """The processes that a process has started, in that order; none once it is gone."""
    try:
        return sorted(int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
    except FileNotFoundError:
        return []
