"""A folder on an object store as one of this machine: copied here to be read, or worked in and sent back."""

import itertools
import json
import logging
import os
import shutil
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax

from lcm_jax.checkpoint_copy import CHECKPOINTS, CheckpointCopies, sent_steps, whole_steps
from lcm_jax.data.store import PARTIAL, Store, Stored, StoreError, cache_folder, is_url, locked, scheme
from lcm_jax.sections import fixed
from lcm_jax.settings import differences

log = logging.getLogger(__name__)
CONFIG = "config.json"
ORIGIN = ".origin.json"  # in a copy: its URL, whether that is a run, and what was copied
DIRECT = ("gs",)  # where orbax reads and writes by itself, each process its own part
SEND_SECONDS = 30.0  # between looks for what has changed
RECORDS = (".json", ".jsonl")  # endings of what a run that goes on reads in its folder


def located(source: str | os.PathLike) -> str | os.PathLike:
    """A path or a name as it is; of a run or a model on an object store a copy on this machine, brought up to date.

    Checkpoints on gs:// are not copied: they are read where they are. Raises StoreError, or FileNotFoundError for a
    folder without files.
    """
    if not is_url(source):
        return source
    store = Store(str(source))
    copy = cache_folder("folders", store.url)
    with locked(copy):
        found = store.list()
        if not found:
            raise FileNotFoundError(f"{store.url} holds nothing: give the folder of a run or of a model")
        steps = set() if scheme(store.url) in DIRECT else whole_steps(found)
        wanted = {name: stored for name, stored in found.items() if of_steps(name, steps)}
        bring(store, copy, wanted, CONFIG in found)
    return copy


def of_steps(name: str, steps: set[int]) -> bool:
    """Whether a file is none of a checkpoint, or of one of those steps."""
    first, *rest = name.split("/")
    return first != CHECKPOINTS or rest[0] in map(str, steps)


def checkpoints(where: str | Path) -> str | Path:
    """Where the checkpoints are of the run in a folder, or in the copy of one."""
    told = origin(where)
    if told is None or not told["run"] or scheme(told["url"]) not in DIRECT:
        return Path(where) / CHECKPOINTS
    return f"{told['url']}/{CHECKPOINTS}"


def holds_run(where: str | Path) -> bool:
    """Whether a folder, or the copy of one, is a run's rather than exported weights."""
    told = origin(where)
    return (Path(where) / CHECKPOINTS).is_dir() if told is None else told["run"]


def named(where: str | Path) -> str:
    """What the user calls a folder, or the folder that it is a copy of."""
    told = origin(where)
    return str(where) if told is None else told["url"]


def origin(where: str | Path) -> dict[str, Any] | None:
    """What a copy says of where it comes from; None for a folder that is no copy."""
    path = Path(where) / ORIGIN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def bring(store: Store, copy: Path, wanted: Mapping[str, Stored], run: bool) -> None:
    """Copies what changed since the last time, removes what is not wanted any more."""
    told = origin(copy)
    held = {} if told is None else {name: Stored(*stored) for name, stored in told["files"].items()}
    (copy / ORIGIN).unlink(missing_ok=True)
    for name in held.keys() - wanted.keys():
        (copy / name).unlink(missing_ok=True)
    for name, stored in wanted.items():
        path = copy / name
        same = stored.tag is not None and held.get(name) == stored
        if not (same and path.is_file() and path.stat().st_size == stored.size):
            store.get(name, path)
    (copy / ORIGIN).write_text(json.dumps({"url": store.url, "run": run, "files": wanted}), encoding="utf-8")


class Place:
    """The folder `here` in which a run is trained."""

    def __init__(self, where: str | Path):
        self.here = Path(where)

    def has(self, name: str) -> bool:
        """Whether the run has a file where all processes look for it."""
        return (self.here / name).exists()

    def send(self) -> None:
        """Nothing: what is written lies where it belongs."""

    def __enter__(self) -> "Place":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass


class StoredPlace(Place):
    """A copy of a run on an object store in which one process works; a thread of the first one sends what changes.

    The copy is begun anew, so that another machine may have gone on meanwhile. Raises ValueError for several processes
    on s3://, StoreError where the store does not answer.
    """

    def __init__(self, url: str):
        self._store = Store(url)
        direct = scheme(url) in DIRECT
        if not direct and jax.process_count() > 1:
            raise ValueError(
                f"{url}: several processes write their checkpoints to gs:// or to a folder that all share; give such a "
                "--run, or train as one process"
            )
        super().__init__(cache_folder("runs", self._store.url, f"process {jax.process_index()}"))
        found = self._store.list()
        steps = set() if direct else whole_steps(found)
        aside = None if direct or not unsent(self.here, steps) else set_aside(self.here)
        shutil.rmtree(self.here, ignore_errors=True)
        self.here.mkdir(parents=True)
        above = {name for name in found if "/" not in name and name.endswith(RECORDS)}
        of_checkpoints = {name for name in found if name.startswith(CHECKPOINTS + "/") and of_steps(name, steps)}
        bring(self._store, self.here, {name: found[name] for name in above | of_checkpoints}, run=True)
        self._sent = {path: _stamp(path) for path in self._files()}
        if aside is not None:
            take_up(aside, self.here, steps)
        self._copies = None if direct else CheckpointCopies(self._store, self.here / CHECKPOINTS, found)
        self._first = jax.process_index() == 0
        self._sending, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="send run", daemon=True)

    def has(self, name: str) -> bool:
        return name in self._store.list()

    def send(self) -> None:
        """Sends what has changed since the last time. Raises StoreError."""
        if not self._first:
            return
        with self._sending:
            for path in self._files():
                if (stamp := _stamp(path)) != self._sent.get(path):
                    self._store.put(path, path.relative_to(self.here).as_posix())
                    self._sent[path] = stamp
            if self._copies is not None:
                self._copies.send()

    def __enter__(self) -> "StoredPlace":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._over.set()
        self._thread.join()
        if isinstance(error, StoreError):  # there is no use in another try
            return
        try:
            self.send()
        except StoreError as failed:
            if kind is None:
                raise
            log.warning("%s; the last that was written lies in %s", failed, self.here)

    def _work(self) -> None:
        while not self._over.wait(SEND_SECONDS):
            try:
                self.send()
            except StoreError as error:
                log.warning("%s; tried again in %.0f s", error, SEND_SECONDS)

    def _files(self) -> list[Path]:
        # Checkpoints go their own way; files under a hidden or unfinished name are being written.
        found = sorted(path for path in self.here.rglob("*") if path.is_file() and not path.name.startswith("."))
        kept = [path for path in found if path.relative_to(self.here).parts[0] != CHECKPOINTS]
        return [path for path in kept if path.suffix not in (PARTIAL, ".tmp")]


def unsent(copy: Path, steps: Collection[int]) -> list[Path]:
    """The finished checkpoints of a copy that never were on the store and are newer than all `steps`, which it has."""
    checkpoints = copy / CHECKPOINTS
    found = {int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()} - sent_steps(checkpoints)
    return [checkpoints / str(step) for step in sorted(found) if step > max(steps, default=-1)]


def set_aside(copy: Path) -> Path:
    """Renames a copy; the new name is no other's."""
    names = (copy.with_name(f"{copy.name}, not sent {number}") for number in itertools.count(1))
    return copy.rename(next(name for name in names if not name.exists()))


def take_up(aside: Path, copy: Path, steps: Collection[int]) -> None:
    """Moves into a copy what an earlier life of the same run wrote and could not send, for it to go on from there."""
    kept = unsent(aside, steps)
    told = f"checkpoints {', '.join(path.name for path in kept)}, which could not be sent before"
    configs = [where / CONFIG for where in (aside, copy)]
    if not all(path.is_file() for path in configs) or differences(*(fixed(json.loads(p.read_text())) for p in configs)):
        log.warning("%s holds %s, of another run than the store's: they are left there", aside, told)
        return
    log.warning("going on with %s", told)
    (copy / CHECKPOINTS).mkdir(exist_ok=True)
    for path in kept:
        path.rename(copy / CHECKPOINTS / path.name)
    shutil.copytree(aside, copy, ignore=shutil.ignore_patterns(".*", CHECKPOINTS), dirs_exist_ok=True)
    shutil.rmtree(aside)


def opened(where: str | os.PathLike) -> Place:
    """The place to train a run in, of a path or of a URL."""
    return StoredPlace(str(where)) if is_url(where) else Place(where)


def _stamp(path: Path) -> tuple[int, int]:
    told = path.stat()
    return told.st_mtime_ns, told.st_size
