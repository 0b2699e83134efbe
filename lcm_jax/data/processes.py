"""One process among several that encode into one folder: its part of the shards, and news of the others."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lcm_jax.data import manifest, resume

POLL = 0.5  # seconds between two looks for a file of another process
SEEN = 60.0  # seconds until what one host wrote is seen by all: network file systems remember that there was no file
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """Process `index` of `count`; `on_all` and `the_same` are those of parallel.agreement, called by all alike."""

    index: int = 0
    count: int = 1
    on_all: Callable[[bool], bool] = bool
    the_same: Callable[[int], bool] = lambda mine: True

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """What falls to this process: every count-th."""
        return items[self.index :: self.count]


ALONE = Processes()


class OtherFailed(RuntimeError):
    """Another process has failed, and so must this one."""


class Run:
    """A run that resume.begin began, told from earlier ones in the folder by its number.

    Waiting has no end of its own: a process that dies without a word is noticed by jax's coordinator, which ends all.
    Raises ValueError where the processes see different folders.
    """

    def __init__(self, out: Path, processes: Processes):
        self.out, self.processes = out, processes
        until = time.monotonic() + SEEN
        while not (out / resume.PROGRESS).exists() and time.monotonic() < until:
            time.sleep(POLL)
        there = (out / resume.PROGRESS).exists()
        self.number = json.loads((out / resume.PROGRESS).read_text(encoding="utf-8"))["run"] if there else 0
        if not processes.the_same(self.number):
            raise ValueError(f"{out} is not the same folder for every process: give one on storage that all share")

    def check(self) -> None:
        """Raises OtherFailed, with the reason, once another process of this run has failed."""
        path = self.out / resume.FAILED
        if not path.exists():
            return
        said = json.loads(path.read_text(encoding="utf-8"))
        if said["run"] == self.number:
            raise OtherFailed(f"process {said['process']} of {self.processes.count} failed: {said['why']}")

    def wait_for(self, path: Path) -> None:
        """Waits for a file of another process."""
        while not path.exists():
            self.check()
            time.sleep(POLL)

    def note(self, file: str) -> resume.Note:
        """The note of a shard that some process finishes; ValueError if it cannot be read."""
        path = resume.path_of(self.out, file)
        self.wait_for(path)
        note = resume.read(self.out, file)
        if note is None:
            raise ValueError(f"{path} cannot be read: encode again, and its shard is made anew")
        return note

    @contextmanager
    def told(self) -> Iterator[None]:
        """Tells the others of a failure within it."""
        try:
            yield
        except OtherFailed:
            raise
        except BaseException as error:
            if self.processes.count > 1:
                why = f"{error}" or type(error).__name__
                said = {"run": self.number, "process": self.processes.index, "why": why}
                with suppress(OSError):  # it is the folder that fails: the others notice it themselves
                    manifest.write_text(self.out / resume.FAILED, json.dumps(said) + "\n")
            raise
