"""Keeps the JSON of a measurement under benchmarks/results, with where and when it was made, and prints it."""

import json
from pathlib import Path
from typing import Any

from lcm_jax.machine import machine

FOLDER = Path(__file__).parent / "results"


def save(name: str, values: dict[str, Any]) -> Path:
    """Writes results/NAME.json with `values` and the machine they were measured on."""
    FOLDER.mkdir(exist_ok=True)
    text = json.dumps({"name": name, **values, "measured_on": machine()}, indent=1)
    path = FOLDER / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(text)
    return path
