"""Where the numbers of a run go: JSON lines, TensorBoard event files and a live bar."""

import json
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

FILE = "metrics.jsonl"
BAR = {"loss/mean": "loss", "images/s": "img/s", "data/wait_share": "data wait"}


class MetricsWriter:
    """Writes scalars of a run to `folder`/metrics.jsonl and TensorBoard event files, and moves the bar.

    A run that goes on from `start` forgets what an earlier life wrote about later steps, so each step
    stands in the file once. `steps` is the last step of the run; without it there is no bar.
    """

    def __init__(self, folder: str | Path, start: int = 0, steps: int | None = None, bar: bool = True):
        from tensorboardX import SummaryWriter  # imports PyTorch where it is: seconds for those who train alone

        self.path = Path(folder) / FILE
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            rewind(self.path, start)
        self._lines = self.path.open("a", encoding="utf-8")
        self._events = SummaryWriter(str(folder), purge_step=start + 1 if start else None)
        self._bar = None
        if steps is not None:
            self._bar = tqdm(
                total=steps, initial=start, unit="step", disable=not bar, dynamic_ncols=True, file=sys.stderr
            )

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line and one point per scalar; names say what was reduced how, as in 'loss/mean'."""
        scalars = {name: float(value) for name, value in metrics.items()}
        # JSON has no NaN: null is what every reader of the file understands.
        safe = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self._lines.write(json.dumps({"step": step, "time": round(time.time(), 3), **safe}) + "\n")
        self._lines.flush()
        for name, value in scalars.items():
            self._events.add_scalar(name, value, step)
        if self._bar is not None:
            self._bar.set_postfix({BAR[name]: f"{scalars[name]:.4g}" for name in BAR if name in scalars})

    def tick(self, step: int) -> None:
        """Moves the bar to `step`; its ETA is tqdm's."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the files and the bar."""
        if self._bar is not None:
            self._bar.close()
        self._events.close()
        self._lines.close()


def read(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines as dicts; a last line that a killed run left unfinished is dropped."""
    lines = Path(path).read_text(encoding="utf-8").split("\n")
    # Whatever follows the last line break was never finished.
    return [json.loads(line) for line in lines[:-1] if line]


def rewind(path: str | Path, step: int) -> None:
    """Drops the lines after `step` and an unfinished last one."""
    kept = [line for line in read(path) if line["step"] <= step]
    fresh = Path(f"{path}.tmp")
    fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    fresh.replace(path)
