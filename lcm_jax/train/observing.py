"""A run watched from within: steps that hang, steps that are recorded, memory of the device."""

import faulthandler
import logging
import math
import signal
import sys
import time
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)
FOLDER = "profile"
GIB = 1024**3
LINGER = 0.2  # of the patience, between the stacks and the end


class Patience:
    """Unless called again within `seconds` (0: whenever), the stacks of all threads go to stderr and the process ends.

    It ends by SIGALRM, LINGER of `seconds` after the stacks: where one process hangs, those that wait for it, whose
    clocks were set up to a tenth apart, tell theirs, too, before the first of them is gone. Neither needs the
    interpreter, which a collective that never returns may hold.
    """

    def __init__(self, seconds: float):
        self._seconds, self._since = seconds, -math.inf

    def __call__(self) -> None:
        """All is well. Setting the clock costs a thread, so that is done a tenth of the time apart."""
        now = time.monotonic()
        if self._seconds and now - self._since >= self._seconds / 10 and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(self._seconds, file=sys.__stderr__)
            signal.setitimer(signal.ITIMER_REAL, (1 + LINGER) * self._seconds)
            self._since = now

    def rest(self) -> None:
        """Nothing is expected until it is called again."""
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._since = -math.inf


def memory() -> dict[str, float]:
    """The most that this process's first device has held, where it says so: GPUs and TPUs do."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return {"device/peak_gib": stats["peak_bytes_in_use"] / GIB} if "peak_bytes_in_use" in stats else {}


class Tracer:
    """Records steps `first` to `last` of a run in `folder`/profile; without `steps` it does nothing.

    Raises ValueError for steps that are none, or without a folder.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: str | Path | None):
        self._steps, self._running = steps, False
        if steps is None:
            return
        if not 1 <= steps[0] <= steps[1]:
            raise ValueError(f"cannot record steps {steps[0]} to {steps[1]}: give the first and the last, from 1 on")
        if folder is None:
            raise ValueError("recording steps needs a folder to write to")
        self._folder = str(Path(folder) / FOLDER)

    def begin(self, step: int) -> None:
        """Before a step."""
        if self._steps is not None and not self._running and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._folder)
            self._running = True

    def end(self, step: int, outcome: Any) -> None:
        """After a step was dispatched; waits for the last one's `outcome`."""
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(outcome)
            self.close()

    def close(self) -> None:
        """Writes what was recorded."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._steps = None
            log.info("recorded steps are in %s", self._folder)
