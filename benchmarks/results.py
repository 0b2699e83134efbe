"""Keeps the JSON of a measurement under benchmarks/results, with where and when it was made, and prints it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lcm_jax.machine import machine

FOLDER = Path(__file__).parent / "results"


def save(name: str, values: dict[str, Any], show: bool = True) -> Path:
    """Writes results/NAME.json with `values` and the machine they were measured on, and prints it with `show`."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"name": name, **values, "measured_on": machine()}, indent=1)
    path = FOLDER / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8")
    if show:
        print(text)
    return path


@contextmanager
def held() -> Iterator[None]:
    """Keeps other processes waiting that would hold results/, so that what they read and add to is the newest."""
    FOLDER.mkdir(exist_ok=True)
    folder = os.open(FOLDER, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)  # lets go


def kept(name: str) -> dict[str, Any]:
    """What results/NAME.json says; nothing where there is none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
