"""SIGTERM and Ctrl-C as a flag the loop reads between steps; the second one ends the process at once."""

import os
import signal
import sys
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """`with Interrupt() as stop:` ... `if stop.requested:` finish the step, save, leave.

    Outside the main thread, where Python allows no handlers, it never fires.
    """

    def __init__(self):
        self.requested = False
        self.name = ""  # of the signal that came
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._caught) for number in SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.requested:
            # os._exit: background threads may be stuck in the very write that made the user impatient.
            print(f"\n{name} again: leaving at once", file=sys.stderr, flush=True)
            os._exit(128 + number)
        self.requested, self.name = True, name
        print(f"\n{name}: finishing the step and saving; once more to leave at once", file=sys.stderr)
