"""A run's time from its first start on: what of it counted, and how much the devices could have done."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class Course:
    """What the loop cannot know by itself of the run it goes on with."""

    begun: float  # of the first life, seconds since the epoch
    counted: float = 0.0  # seconds of the steps whose outcome the run has
    least: float | None = None  # seconds a step takes at the rate that the devices' maker states, where it is known

    def rates(self, seconds: float, steps: int) -> dict[str, float]:
        """Of `steps` more that took so long: goodput, the share of wall time in steps that counted, and MFU."""
        self.counted += seconds
        found = {"goodput": self.counted / max(time.time() - self.begun, 1e-9)}
        return found if self.least is None else {**found, "mfu": self.least * steps / seconds}


def counted_seconds(rows: Sequence[Mapping[str, Any]], lives: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """Time of the steps whose outcome a run still has: no compilation, no saving, nothing done twice.

    `rows` are those of metrics.jsonl: what a life did after its last checkpoint is not there once the next one goes on
    from it.
    """
    total, before = 0.0, 0
    first = {life["step"] + 1 for life in lives}  # a life's first step holds the compilation
    for row in rows:
        if row.get("images/s"):  # 0 where a report follows another at once
            begun = max([before, *(step for step in first if before < step <= row["step"])])
            total += (row["step"] - begun) * batch_size / row["images/s"]
        before = row["step"]
    return total
