"""Checkpoints of a run: state, loader position and description, written behind its back and found again."""

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from lcm_jax.parallel.agreement import on_all
from lcm_jax.train import hashes
from lcm_jax.train.writing import Writing

log = logging.getLogger(__name__)
SETTINGS = ("keep", "best_metric", "best_mode")  # keywords of Checkpointer
UNFINISHED = "orbax-checkpoint-tmp"  # in the names of folders that orbax has not committed
NOT_THE_DISK = (MemoryError, jax.errors.JaxRuntimeError)  # an exhausted machine, no fault of the files


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which, why and what to do."""


class _Unreadable(CheckpointError):
    pass


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> Any:
        """None, as without metrics, where their file is broken: one checkpoint's fault is not that of the others."""
        try:
            return super().metrics(step)
        except ValueError as error:
            log.warning("the metrics of checkpoint %d cannot be read (%s): it is not the best one", step, error)
            return None


class Restored(NamedTuple):
    """What a checkpoint held."""

    step: int
    state: Any
    position: Any  # of the loader, as its get_state() gave it
    about: dict[str, Any]


def flatten(tree: Any) -> dict[str, Any]:
    """{'params/conv_in/kernel': leaf}: names that survive a change of container; None has no leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def check(settings: Mapping[str, Any], section: str = "") -> None:
    """Raises ValueError for a setting that means nothing to Checkpointer."""
    keep, mode = settings.get("keep", 1), settings.get("best_mode", "min")
    if not isinstance(keep, int) or keep < 1:
        raise ValueError(f"{section}keep must be at least 1 checkpoint, not {keep!r}")
    if mode not in ("min", "max"):
        raise ValueError(f"{section}best_mode must be 'min' or 'max', not {mode!r}")


class Checkpointer:
    """Numbered checkpoints in `folder`: the newest `keep`, and the best by `best_metric`.

    `about` (JSON) travels with every checkpoint: the config's hash, the model's description.
    With `read_only` nothing in the folder is touched.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 3,
        best_metric: str | None = None,
        best_mode: str = "min",
        about: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ):
        check({"keep": keep, "best_mode": best_mode})
        self.folder = str(folder) if "://" in str(folder) else os.path.abspath(folder)
        if read_only and "://" not in self.folder and not os.path.isdir(self.folder):
            raise FileNotFoundError(f"no checkpoint folder at {self.folder}")
        self.about = dict(about or {})
        self.best_metric = best_metric
        self.read_only = read_only
        self._unreadable: list[int] = []
        self._saving: int | None = None
        self._verified: set[int] = set()
        preserve = [policies.LatestN(keep)]
        best_fn = None
        if best_metric is not None:
            best_fn = itemgetter(best_metric)
            preserve.append(
                policies.BestN(
                    get_metric_fn=best_fn,
                    reverse=best_mode == "min",  # the policy keeps the end of the sorted list
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._writing = Writing()
        self._manager = _Manager(
            self.folder,
            handler_registry=ocp.handlers.create_default_handler_registry(
                state=self._writing.handler, about=ocp.JsonCheckpointHandler()
            ),
            options=ocp.CheckpointManagerOptions(
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._hash),
                best_fn=best_fn,
                best_mode=best_mode,
                preservation_policy=policies.AnyPreservationPolicy(preserve),
            ),
        )

    def _hash(self) -> None:
        # In orbax's thread, behind the training's back, before it commits. What an object store holds it hashes itself.
        if jax.process_index() == 0 and "://" not in self.folder:
            for folder in Path(self.folder).glob(f"{self._saving}.{UNFINISHED}*"):
                hashes.write(folder)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """Step of the checkpoint with the best metric, None if none has one."""
        return self._manager.best_step() if self.best_metric else None

    def save(
        self, step: int, state: Any, position: Any = None, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Start writing `state`; returns once the state is copied off the device (it may then be donated).

        Raises CheckpointError if this save cannot start or the one before it failed.
        """
        if self.read_only:
            raise CheckpointError(f"{self.folder} was opened for reading only")
        leaves = flatten(state)
        about = {"step": step, "position": position, "about": self.about, "leaves": describe(leaves)}
        try:
            json.dumps(about)
        except TypeError as error:
            raise CheckpointError(f"loader position and description must be JSON: {error}") from error
        tracked = None
        if self.best_metric is not None and metrics:
            if self.best_metric in metrics:
                tracked = {self.best_metric: float(metrics[self.best_metric])}
            else:
                named = ", ".join(metrics)
                log.warning("checkpoint of step %d cannot be the best by %r: it has %s", step, self.best_metric, named)
        with self._told(step):
            self._set_unreadable_aside()
            self._writing.finish(self._manager.wait_until_finished)
            self._check_space(leaves)
            self._saving = step
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(leaves), about=ocp.args.JsonSave(about)),
                metrics=tracked,
                force=True,  # the loop decides when; never skip because a later step exists
            )

    def check(self) -> None:
        """Raise CheckpointError if a save in the background has failed; does not wait."""
        with self._told(None):
            self._writing.check()
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Wait until what was saved is on disk. Raises CheckpointError if it could not be written."""
        with self._told(None):
            self._writing.finish(self._manager.wait_until_finished)

    def close(self) -> None:
        """Wait and release the threads."""
        with self._told(None):
            self._writing.finish(self._manager.close)

    def restore(self, abstract: Any, step: int | None = None) -> Restored | None:
        """The newest readable checkpoint (or that of `step`) on the tree `abstract` of ShapeDtypeStruct.

        Leaves land on the sharding that `abstract` gives them. An unreadable checkpoint is passed over
        with a warning, unless asked for by step. None if the folder holds no checkpoint. All processes call it.
        Raises CheckpointError for another architecture or precision, or if nothing is readable.
        """
        reasons = []
        for candidate in [step] if step is not None else self.steps()[::-1]:
            problem, read = None, None
            for attempt in (self._verify_share, partial(self._read_all, abstract)):
                try:
                    read = attempt(candidate)
                except _Unreadable as error:
                    problem = str(error)
                # What one cannot read, none takes; and in orbax all meet, so none may go there alone.
                if not on_all(problem is None):
                    problem = problem or f"checkpoint {self.folder}/{candidate} cannot be read by another process"
                    break
            if problem is not None:
                reasons.append(problem)
                log.warning("%s", problem)
                continue
            if reasons:
                self._unreadable = [n for n in self.steps() if n > candidate]
                log.warning("going on from the last good checkpoint %s/%s", self.folder, candidate)
            return read
        if reasons:
            raise CheckpointError(
                f"nothing readable in {self.folder}: {'; '.join(reasons)}; bring the "
                "folder back from a copy or start a new run"
            )
        return None

    def restore_part(self, part: str, abstract: Any, step: int | None = None) -> Any:
        """One field of the saved state ('ema', 'params', ...), cast to the dtypes of the tree `abstract`.

        Raises CheckpointError if there is no such checkpoint or part, or for another architecture.
        """
        step = self._known(step)
        wanted = {f"{part}/{name}" if name else part: leaf for name, leaf in flatten(abstract).items()}
        saved = self._about(step)["leaves"]
        saved = {name: leaf for name, leaf in saved.items() if name == part or name.startswith(part + "/")}
        if not saved:
            raise CheckpointError(f"checkpoint {self.folder}/{step} holds no '{part}'")
        self._compare(step, describe(wanted), saved, dtypes=False)
        leaves = self._leaves(step, wanted)
        return jax.tree.unflatten(jax.tree.structure(abstract), list(leaves.values()))

    def describe_step(self, step: int | None = None) -> dict[str, Any]:
        """The `about` of a checkpoint (the newest if None), to build its networks before restoring them.

        Raises CheckpointError if it is missing or unreadable.
        """
        return self._about(self._known(step))["about"]

    def _known(self, step: int | None) -> int:
        steps = self.steps()
        if step is None and steps:
            return steps[-1]
        if step not in steps:
            which = "" if step is None else f" of step {step}"
            raise CheckpointError(f"no checkpoint{which} in {self.folder}; it has {steps}")
        return step

    def _verify_share(self, step: int) -> None:
        self._verify(step, jax.process_index(), jax.process_count())

    def _read_all(self, abstract: Any, step: int) -> Restored:
        about = self._about(step)
        self._compare(step, describe(flatten(abstract)), about["leaves"])
        leaves = self._leaves(step, flatten(abstract))
        state = jax.tree.unflatten(jax.tree.structure(abstract), list(leaves.values()))
        return Restored(step, state, about["position"], about["about"])

    def _verify(self, step: int, share: int = 0, of: int = 1) -> None:
        # Once. Only where all processes agree afterwards on what is readable may each take its share of the files.
        if "://" in self.folder or step in self._verified:
            return
        if (name := hashes.changed(Path(self.folder) / str(step), share, of)) is not None:
            raise _Unreadable(f"checkpoint {self.folder}/{step} cannot be read: {name} is not what was written")
        self._verified.add(step)

    def _about(self, step: int) -> dict[str, Any]:
        self._verify(step)
        about = self._read(step, about=ocp.args.JsonRestore()).about
        if not isinstance(about, dict) or "leaves" not in about:
            raise _Unreadable(f"checkpoint {self.folder}/{step} cannot be read: incomplete description")
        return about

    def _leaves(self, step: int, wanted: dict[str, Any]) -> dict[str, Any]:
        args = ocp.args.PyTreeRestore(
            item=wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        found = self._read(step, state=args).state
        return {name: found[name] for name in wanted}

    def _read(self, step: int, **items: Any) -> Any:
        # A cut or missing file surfaces as ValueError, OSError, KeyError or, from orbax, bare Exception.
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except NOT_THE_DISK:
            raise
        except Exception as error:
            raise _Unreadable(f"checkpoint {self.folder}/{step} cannot be read: {cause(error)}") from error

    def _compare(self, step: int, here: dict, there: dict, dtypes: bool = True) -> None:
        for name in sorted(here.keys() | there.keys()):
            ours, theirs = here.get(name), there.get(name)
            if ours is None or theirs is None or list(ours[0]) != list(theirs[0]):
                kind, i = "architecture", 0
            elif dtypes and ours[1] != theirs[1]:
                kind, i = "precision", 1
            else:
                continue
            there_is, here_is = ("absent" if leaf is None else leaf[i] for leaf in (theirs, ours))
            raise CheckpointError(
                f"checkpoint {self.folder}/{step} is of another {kind}: '{name}' is {there_is} there and "
                f"{here_is} here; use the config that made it or another run folder"
            )

    def _set_unreadable_aside(self) -> None:
        # An unreadable step would count among the newest kept, and block its own number.
        if not self._unreadable:
            return
        if "://" in self.folder:
            for step in self._unreadable:
                self._manager.delete(step)
        elif jax.process_index() == 0:
            for step in self._unreadable:
                os.replace(f"{self.folder}/{step}", free_name(f"{self.folder}/{step}.unreadable"))
        self._unreadable = []
        on_all(True)  # who looked before they were gone would refuse to write their steps again
        self._manager.reload()

    def _check_space(self, leaves: dict[str, Any]) -> None:
        if "://" in self.folder:
            return
        shards = (shard for leaf in leaves.values() for shard in leaf.addressable_shards)
        needed = sum(shard.data.nbytes for shard in shards if shard.replica_id == 0)
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise OSError(f"disk full: it takes {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free")

    @contextmanager
    def _told(self, step: int | None) -> Iterator[None]:
        # Orbax raises whatever tensorstore or the file system raised; say it once, in words.
        try:
            yield
        except NOT_THE_DISK + (CheckpointError,):
            raise
        except Exception as error:
            which = "" if step is None else f" of step {step}"
            raise CheckpointError(
                f"a checkpoint{which} could not be written to {self.folder}: {cause(error)}; earlier "
                "checkpoints are intact: make room on the disk or mend what it says, and run it again"
            ) from error


def describe(leaves: Mapping[str, Any]) -> dict[str, list]:
    """{name: [shape, dtype]} of arrays or ShapeDtypeStructs, as JSON."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in leaves.items()}


def cause(error: BaseException) -> str:
    """The first line of what lies at the bottom of a chain of exceptions, at most 500 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:500]


def free_name(path: str) -> str:
    """`path`, or `path.2`, `path.3`, ... if taken."""
    number, name = 1, path
    while os.path.exists(name):
        number += 1
        name = f"{path}.{number}"
    return name
