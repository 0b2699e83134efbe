"""When a run was started, from which step and on what: a line for each life, in lives.jsonl."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcm_jax.train import metrics

FILE = "lives.jsonl"


def begin(folder: str | Path, step: int, about: Mapping[str, Any]) -> None:
    """Notes that training starts now from `step`; `about` says on what machine, with which versions."""
    line = json.dumps({"time": round(time.time(), 3), "step": step, **about})
    with (Path(folder) / FILE).open("a", encoding="utf-8") as lines:
        lines.write(line + "\n")


def read(folder: str | Path) -> list[dict[str, Any]]:
    """The lives of a run, the first one first; none for a run that was begun before they were noted."""
    path = Path(folder) / FILE
    return metrics.read(path) if path.exists() else []
