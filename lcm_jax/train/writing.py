"""How a process writes its part of a checkpoint, and what becomes of the run where it cannot."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# What all devices hold is written in parts, one by each process; of a small tensor cutting costs more than it saves.
SHARED = 2**20  # bytes of a part at least
POLL = 0.1  # seconds between two looks whether writing has failed


class Writing:
    """Orbax's handler of a state's arrays, and waiting for it that ends where this process cannot write.

    In orbax, of several processes the one that cannot write waits ten minutes for the others, and they for it.
    """

    def __init__(self) -> None:
        self._failed: list[BaseException] = []
        arrays = ocp.type_handlers.create_type_handler_registry(
            (jax.Array, _Arrays(self._failed)),
            (np.ndarray, ocp.type_handlers.NumpyHandler()),  # where no device is named that it should be restored to
        )
        # Weights compress by 7 %, in which writing takes half as long again.
        self.handler = ocp.PyTreeCheckpointHandler(type_handler_registry=arrays, use_compression=False)

    def check(self) -> None:
        """Raises what kept this process of several from writing; one alone hears of it from orbax."""
        if self._failed and jax.process_count() > 1:
            raise self._failed[0]

    def finish(self, wait: Callable[[], None]) -> None:
        """wait(), given up as soon as `check` raises; raises what it raises."""
        if jax.process_count() == 1:
            return wait()
        found: list[BaseException] = []

        def work() -> None:
            try:
                wait()
            except BaseException as error:
                found.append(error)

        waiting = threading.Thread(target=work, name="checkpoint wait", daemon=True)
        waiting.start()
        while waiting.is_alive():
            waiting.join(POLL)
            self.check()
        if found:
            raise found[0]


class _Arrays(ocp.type_handlers.ArrayHandler):
    """Orbax's own, which also notes in `failed` what could not be written."""

    def __init__(self, failed: list[BaseException]):
        super().__init__(min_slice_bytes_for_replica_parallel=SHARED)
        self._failed = failed

    async def serialize(self, *given: Any, **more: Any) -> Any:
        return [_Noted(future, self._failed) for future in await super().serialize(*given, **more)]


@dataclass(frozen=True)
class _Noted:
    """A future whose failure is noted."""

    future: Any
    failed: list[BaseException]

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self.future.result(timeout)
        except BaseException as error:
            self.failed.append(error)
            raise

    def cancel(self) -> bool | None:
        return self.future.cancel()
