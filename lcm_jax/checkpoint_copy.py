"""Checkpoints that orbax cannot write to an object store itself: written here, sent when they are finished."""

import json
from collections.abc import Iterable
from pathlib import Path

from lcm_jax.data.store import Store

CHECKPOINTS = "checkpoints"
SENT_STEPS = ".sent.json"  # beside CHECKPOINTS on this machine: the steps that have been on the store
SENT = ".sent"  # CHECKPOINTS/STEP.sent on the store says that all files of that step are there


def whole_steps(names: Iterable[str]) -> set[int]:
    """The steps whose checkpoints lie whole on a store that holds files of those names."""
    return {int(name.split("/")[1].removesuffix(SENT)) for name in names if name.endswith(SENT)}


def sent_steps(folder: Path) -> set[int]:
    """The steps of a folder of checkpoints that have been on the store, whether they are there still or not."""
    path = folder.with_name(SENT_STEPS)
    return set(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else set()


class CheckpointCopies:
    """Keeps the checkpoints of a run on a store the same as those in `folder`; `found` are the store's files.

    What an earlier life did not finish sending is removed there. Raises StoreError.
    """

    def __init__(self, store: Store, folder: Path, found: Iterable[str]):
        self._store, self._folder = store, folder
        # A step that is written again, after one that could not be read was set aside, has another folder.
        self._there = {step: _folder_of(folder / str(step)) for step in whole_steps(found)}
        self._note()
        started = {name.split("/")[1] for name in found if name.startswith(CHECKPOINTS + "/") and name.count("/") > 1}
        for step in started - set(map(str, self._there)):
            self._remove(step)

    def send(self) -> None:
        """Sends the steps that are finished here, removes those that are here no longer."""
        # A step's folder is given its number when orbax has finished it.
        here = {int(path.name): _folder_of(path) for path in self._folder.glob("*") if path.name.isdigit()}
        for step in sorted(step for step in here if here[step] != self._there.get(step)):
            if step in self._there:
                self._forget(step)
            try:
                for path in sorted(path for path in (self._folder / str(step)).rglob("*") if path.is_file()):
                    self._store.put(path, f"{CHECKPOINTS}/{path.relative_to(self._folder).as_posix()}")
            except FileNotFoundError:  # newer ones have come meanwhile
                self._remove(str(step))
                continue
            self._store.write(f"{CHECKPOINTS}/{step}{SENT}", b"")
            self._there[step] = here[step]
            self._note()
        for step in sorted(self._there.keys() - here.keys()):
            self._forget(step)

    def _forget(self, step: int) -> None:
        self._store.remove(f"{CHECKPOINTS}/{step}{SENT}")
        self._remove(str(step))
        del self._there[step]

    def _note(self) -> None:
        path = self._folder.with_name(SENT_STEPS)
        path.write_text(json.dumps(sorted({*sent_steps(self._folder), *self._there})), encoding="utf-8")

    def _remove(self, step: str) -> None:
        for name in self._store.list():
            if name.startswith(f"{CHECKPOINTS}/{step}/"):
                self._store.remove(name)


def _folder_of(path: Path) -> int | None:
    """What tells a folder from another that had its name before; None for none."""
    return path.stat().st_ino if path.is_dir() else None
