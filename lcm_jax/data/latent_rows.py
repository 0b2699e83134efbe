"""The chosen rows of one or several latent folders as arrays, read from the shards or held in memory."""

import bisect
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from lcm_jax.data import manifest, shards
from lcm_jax.data.latent_stats import LatentStats

ARRAYS = ("mean", "std", "context", "pooled", "time_ids", "tokens")
SUMMED = 1024  # rows at a time when statistics are taken
STATES = ("context", "pooled")  # stored and held as float16, served as float32
AGREE = (
    "latent_shape", "context_shape", "pooled_width", "tokens_length", "tokens_towers", "size_ids", "classes",
    "encoders",
)  # fmt: skip


class LatentRows:
    """Rows of a split, chosen by tag and group; several folders count as one, rows numbered through.

    Raises FileNotFoundError or ValueError when a folder or shard is missing or damaged, when folders were
    made by different encoders, or when nothing is left.
    """

    def __init__(
        self,
        folders: Sequence[str | Path],
        split: str | None = None,
        tag: str | None = None,
        groups: Sequence[str] | None = None,
    ):
        if not folders:
            raise ValueError("no latent folder given; name the folder that launch.encode wrote")
        self.folders = [Path(f) for f in folders]
        self.manifests = [manifest.read(f) for f in folders]
        _agree(folders, self.manifests)
        self.names: list[manifest.Row] = []
        self._shards: list[shards.Shard] = []
        self._first: list[int] = []  # number of the first row of each shard
        self._lock = threading.Lock()
        self._held: dict[str, np.ndarray] | None = None
        for folder, made in zip(folders, self.manifests, strict=True):
            problems = manifest.shard_problems(folder, manifest.shards_of(made, split))
            if problems:
                more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
                raise ValueError(problems[0] + more)
            for shard in made.shards:
                self._shards.append(shards.Shard(Path(folder) / shard["file"]))
                self._first.append(len(self.names) + shard["first_row"])
            self.names += manifest.rows(folder)
        self.subset = tag is not None or groups is not None
        self.classes = next((m.classes for m in self.manifests if m.classes), ())
        self._labels = _numbers(self.names, self.classes)
        wanted = None if groups is None else frozenset(groups)
        self.chosen = np.array(
            [
                i
                for i, row in enumerate(self.names)
                if (split is None or row.split == split)
                and (tag is None or tag in row.tags)
                and (wanted is None or row.group in wanted)
            ],
            np.int32,
        )
        if not len(self.chosen):
            self._raise_empty(folders, split, tag)

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def fingerprint(self) -> str:
        """Short hash of which examples are chosen, in order."""
        keys = "\n".join(self.names[i].key for i in self.chosen)
        return hashlib.sha256(keys.encode()).hexdigest()[:16]

    @property
    def nbytes(self) -> int:
        """Memory the chosen rows would take when held (float32 mean and std, float16 states, int32 ids)."""
        each = {"mean": 2 * 4, "context": 2, "pooled": 2, "time_ids": 4, "tokens": 4}
        shapes = self.manifests[0].shapes
        return len(self) * sum(each[name] * int(np.prod(shape)) for name, shape in shapes.items())

    @property
    def unlabelled(self) -> bool:
        """Whether some of the chosen rows of a labelled set have no label."""
        return self._labels is not None and bool((self._labels[self.chosen] == len(self.classes)).any())

    def load(self) -> None:
        """Decode the chosen rows once and serve from memory from now on."""
        self._held = self._read(self.chosen)

    def statistics(self, per: str = "element") -> tuple[np.ndarray, np.ndarray]:
        """Mean and std [h, w, c] of unscaled latents, of every "element" or "channel" (see manifest.statistics).

        Of the training rows as encoding measured them or, where a tag or groups chose some, of those by another pass.
        """
        if not self.subset:
            return manifest.statistics(self.folders, per)
        manifest.check_statistics(per)
        stats = LatentStats()
        for start in range(0, len(self), SUMMED):
            some = self.batch(np.arange(start, min(start + SUMMED, len(self))))
            stats.add(some["mean"], some["std"].astype(np.float64) ** 2)
        shape = self.manifests[0].latent_shape
        mean, std = (np.broadcast_to(values, shape) for values in getattr(stats, per))
        return manifest.usable(mean, std, self.folders)

    def batch(self, positions: Integer[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """Arrays of the chosen rows at `positions` (into `chosen`), with their row numbers as "index".

        Of a labelled set also "label", the number of the class; what has none has the number after the last.
        """
        index = self.chosen[positions]
        if self._held is None:
            arrays = self._read(index)
        else:
            arrays = {name: held[positions] for name, held in self._held.items()}
        arrays |= {name: arrays[name].astype(np.float32) for name in STATES if name in arrays}
        labels = {} if self._labels is None else {"label": self._labels[index]}
        return {**arrays, **labels, "index": index}

    def _read(self, index: np.ndarray) -> dict[str, np.ndarray]:
        where = np.array([bisect.bisect_right(self._first, i) - 1 for i in index])
        found: list[dict[str, np.ndarray] | None] = [None] * len(index)
        for number in np.unique(where):
            places = np.flatnonzero(where == number)
            shard = self._shards[number]
            with self._lock:  # one reader a shard is shared by the loader's threads
                records = shard.read((index[places] - self._first[number]).tolist())
            for place, (_, arrays) in zip(places, records, strict=True):
                found[place] = _as_served(arrays)
        return {name: np.stack([f[name] for f in found]) for name in ARRAYS if name in found[0]}

    def _raise_empty(self, folders: Sequence[str | Path], split: str | None, tag: str | None) -> None:
        tags = sorted({t for row in self.names for t in row.tags})
        counts = {
            s: sum(row.split == s for row in self.names) for s in sorted({row.split for row in self.names})
        }
        where = ", ".join(str(f) for f in folders)
        raise ValueError(
            f"the data set is empty: {where} has no rows with split {split!r} and tag {tag!r};"
            f" splits: {counts}; tags: {', '.join(tags) or 'none'}"
        )


def _numbers(names: Sequence[manifest.Row], classes: Sequence[str]) -> np.ndarray | None:
    if not classes:
        return None
    for row in names:
        if row.label is not None and not 0 <= row.label < len(classes):
            has = f"{row.key} has the label {row.label}, the data set {len(classes)} classes"
            raise ValueError(f"{has}; encode it again with overwrite")
    return np.array([len(classes) if row.label is None else row.label for row in names], np.int32)


def _as_served(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    served = {k: v for k, v in arrays.items() if k in ARRAYS}
    served["mean"] = arrays["mean"].astype(np.float32)
    served["std"] = np.exp(0.5 * arrays["logvar"].astype(np.float32))
    return served


def _agree(folders: Sequence[str | Path], made: list[manifest.Manifest]) -> None:
    for name in AGREE:
        told = [(folder, getattr(each, name)) for folder, each in zip(folders, made, strict=True)]
        if name == "classes":  # pictures without a label stand beside those that have one
            told = [(folder, classes) for folder, classes in told if classes]
        for folder, value in told[1:]:
            if value != told[0][1]:
                message = f"{name} is {told[0][1]} in {told[0][0]} but {value} in {folder}"
                same = "label option" if name == "classes" else "encoders"
                raise ValueError(f"{message}; encode both with the same {same}")
