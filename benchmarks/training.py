"""A run of a benchmark: to its end, or the benchmark ends with it."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcm_jax import build, run_folder


def train(config: Mapping[str, Any], where: Path) -> None:
    """Trains `config` in `where`, or goes on there; a run that a signal stopped is never scored as a whole one."""
    done, steps = int(run_folder.train(build.run(config), where).step), config["steps"]
    if done < steps:
        sys.exit(f"stopped after step {done} of {steps} of {where}; the same command goes on from there")
