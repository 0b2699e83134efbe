"""The checkpoints of a run that is being trained elsewhere, one after the other as they land."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lcm_jax import run_folder
from lcm_jax.train.checkpoint import Checkpointer, CheckpointError

log = logging.getLogger(__name__)


def each(where: str | Path, poll: float, use: Callable[[int], None]) -> None:
    """use(step) for every checkpoint as it lands; one that cannot be read is passed over with a warning."""
    for step in landed(where, poll):
        try:
            use(step)
        except CheckpointError as error:
            log.warning("step %d is passed over: %s", step, error)


def landed(where: str | Path, poll: float, sleep: Callable[[float], None] = time.sleep) -> Iterator[int]:
    """Steps of complete checkpoints, the oldest first, until that of the run's last step; looks every `poll` seconds.

    One that the run has deleted meanwhile, keeping the newest alone, is passed over.
    Raises FileNotFoundError for a folder without a run.
    """
    seen: set[int] = set()
    while True:
        here = Path(run_folder.located(where))  # of an object store: what is there now
        run_folder.check_run(here)
        new = [step for step in steps_of(here) if step not in seen]
        if new:  # one at a time: using it takes a while, others land and go
            seen.add(new[0])
            yield new[0]
        elif seen and max(seen) >= json.loads((here / run_folder.CONFIG).read_text())["steps"]:
            return
        else:
            sleep(poll)


def steps_of(where: str | Path) -> list[int]:
    """The steps of the complete checkpoints of a run, ascending."""
    keep = Checkpointer(run_folder.checkpoints(where), read_only=True)
    try:
        return keep.steps()
    finally:
        keep.close()
