"""What a run's folder says of its course: how far, on what, how fast, and what of its time counted."""

import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm_jax import run_folder
from lcm_jax.train import lives, metrics
from lcm_jax.train.course import counted_seconds


@dataclass(frozen=True)
class RunRecord:
    """A run as its files tell it; times in seconds."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl
    lives: list[dict[str, Any]]
    samples: list[Path]  # grids, the oldest first

    @property
    def step(self) -> int:
        """The last step that was written down."""
        return max((row["step"] for row in self.rows), default=0)

    @property
    def wall(self) -> float | None:
        """From the first start to the last line, pauses between lives included; None without either."""
        return self.rows[-1]["time"] - self.lives[0]["time"] if self.rows and self.lives else None

    @property
    def counted(self) -> float:
        """Time of the steps whose outcome the run still has."""
        return counted_seconds(self.rows, self.lives, self.config["data"]["batch_size"])

    @property
    def goodput(self) -> float | None:
        """Share of the wall time that was spent on steps that counted."""
        return self.counted / self.wall if self.wall else None

    def median(self, name: str) -> float | None:
        """The median of a metric over the run."""
        values = [row[name] for row in self.rows if row.get(name) is not None]
        return statistics.median(values) if values else None

    def total(self, name: str) -> float:
        """The sum of a metric over the run."""
        return math.fsum(row[name] for row in self.rows if row.get(name) is not None)


def run_record(where: str | Path) -> RunRecord:
    """Reads a run's folder; FileNotFoundError where there is none."""
    name, where = Path(where).resolve().name, Path(run_folder.located(where))
    run_folder.check_run(where)
    config = json.loads((where / run_folder.CONFIG).read_text(encoding="utf-8"))
    numbers = where / metrics.FILE
    rows = metrics.read(numbers) if numbers.exists() else []
    grids = sorted((where / run_folder.SAMPLES).glob("*.png"))
    return RunRecord(name, config, rows, lives.read(where), grids)
