"""One side of a comparison in a process of its own, so that neither shares threads, allocator or memory peak."""

import importlib
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

_held: list[Any] = []  # in the side's process: what `make` built


class Side:
    """Calls functions of a module, and methods of what its `make` built, in a process that lives as long as this."""

    def __init__(self, module: str):
        self.module, self.pool = module, ProcessPoolExecutor(1, mp_context=get_context("spawn"))

    def make(self, name: str, *args: Any) -> None:
        """Builds module.name(*args) there and keeps it; raises what building raises."""
        self.pool.submit(_make, self.module, name, args).result()

    def ask(self, name: str, *args: Any) -> Any:
        """The answer of a method, or the value of an attribute, of what was built."""
        return self.pool.submit(_ask, name, args).result()

    def call(self, name: str, *args: Any) -> Any:
        """The answer of a function of the module."""
        return self.pool.submit(_call, self.module, name, args).result()

    def timed(self) -> tuple[float, float]:
        """Seconds of the method `run` of what was built, measured there: by the clock, and of all its processors."""
        return self.pool.submit(_timed).result()

    def close(self) -> None:
        """Ends the process."""
        self.pool.shutdown()


def _make(module: str, name: str, args: tuple) -> None:
    _held[:] = [getattr(importlib.import_module(module), name)(*args)]


def _ask(name: str, args: tuple) -> Any:
    found = getattr(_held[0], name)
    return found(*args) if callable(found) else found


def _call(module: str, name: str, args: tuple) -> Any:
    return getattr(importlib.import_module(module), name)(*args)


def _timed() -> tuple[float, float]:
    begun, worked = time.perf_counter(), time.process_time()
    _held[0].run()
    return time.perf_counter() - begun, time.process_time() - worked
