"""A run of a benchmark: to its end, or the benchmark ends with it."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcm_jax import build, run_folder
from lcm_jax.run_copy import CONFIG


def train(config: Mapping[str, Any], where: Path) -> None:
    """Trains `config` in `where`, or goes on there; what is no whole run of its steps is never scored as one."""
    steps, kept = config["steps"], where / CONFIG
    if kept.exists() and (other := json.loads(kept.read_text())["steps"]) != steps:
        sys.exit(f"{where} holds a run of {other} steps, asked for are {steps}: give another --out")
    done = int(run_folder.train(build.run(config), where).step)
    if done < steps:
        sys.exit(f"stopped after step {done} of {steps} of {where}; the same command goes on from there")
