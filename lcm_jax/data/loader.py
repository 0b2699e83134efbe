"""Shuffled batches of stored latents: this process's part of a global order that no process count changes."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, SupportsIndex, runtime_checkable

import grain
import numpy as np

from lcm_jax.data import latent_copy
from lcm_jax.data.latent_rows import LatentRows
from lcm_jax.data.manifest import Manifest, Row


@runtime_checkable
class Rows(Protocol):
    """What a loader draws from: rows by position, each with a name."""

    names: Sequence[Row]
    chosen: np.ndarray  # the row number of each position
    fingerprint: str  # which examples, in which order

    def __len__(self) -> int: ...
    def batch(self, positions: np.ndarray) -> dict[str, np.ndarray]: ...


ORDERS = ("examples", "groups")  # what an epoch visits once
PREFETCH = 4  # batches ready ahead; a step's batch is small against what waits for it


def make_loader(
    folder: str | Path | Sequence[str | Path],
    split: str | None,
    batch_size: int,
    seed: int = 0,
    own: np.ndarray | None = None,
    num_epochs: int | None = None,
    shuffle: bool = True,
    tag: str | None = None,
    groups: Sequence[str] | None = None,
    each: str = "examples",
    memory_limit: int = 4 * 2**30,
    threads: int = 2,
) -> "Loader":
    """Batches of the latent data set(s) in `folder`, a path or the URL of an object store, copied on first use.

    `batch_size` is global, `split` None takes both splits.
    `own` holds the positions within each global batch that this process reads, by default all of them.
    `tag` and `groups` choose a subset. An epoch visits `each` of the "examples" once or, so that many
    variants of one thing do not crowd out the rest, each of the "groups" once, by a member drawn at random.
    Sets up to `memory_limit` bytes are decoded once and served from memory. A missing or damaged shard, an
    empty choice or a batch larger than the set raise ValueError or FileNotFoundError here, before anything
    is compiled.
    """
    folders = [latent_copy.here(f, split) for f in ([folder] if isinstance(folder, str | Path) else folder)]
    rows = LatentRows(folders, split, tag, groups)
    if rows.nbytes <= memory_limit:
        rows.load()
    return stream(rows, batch_size, seed, own, num_epochs, shuffle, each, threads)


def stream(
    rows: Rows,
    batch_size: int,
    seed: int,
    own: np.ndarray | None,
    num_epochs: int | None,
    shuffle: bool,
    each: str,
    threads: int,
) -> "Loader":
    """Shuffled batches of any rows; raises ValueError for sizes that do not fit each other."""
    if each not in ORDERS:
        raise ValueError(f"an epoch cannot visit each of the {each!r}; choose from {', '.join(ORDERS)}")
    members = _members(rows) if each == "groups" else None
    size = len(rows if members is None else members)
    if batch_size > size:
        raise ValueError(f"config.data.batch_size {batch_size} is larger than the set of {size} {each}: lower it")
    if own is not None and not (len(own) and 0 <= min(own) and max(own) < batch_size):
        raise ValueError(f"positions {own.tolist()} are not all within a batch of {batch_size}")

    # The order is a stream of indices; a process loads only its rows of each global batch. Batches run
    # across epoch borders, so every epoch visits everything once and only the very end is dropped.
    order = grain.MapDataset.range(size)
    if shuffle:
        order = order.shuffle(seed=seed)
    order = order.repeat(num_epochs)
    if members is not None:  # after repeat, so that each visit draws anew
        order = order.random_map(lambda group, rng: rng.choice(members[group]), seed=seed)
    mine = slice(None) if own is None else own
    batches = order.batch(batch_size, drop_remainder=True).map(
        lambda positions: rows.batch(np.asarray(positions)[mine])
    )
    identity = {"size": size, "rows": rows.fingerprint, "seed": seed, "batch_size": batch_size}
    return Loader(batches, rows, {**identity, "shuffle": shuffle, "each": each}, size, threads)


def _members(rows: Rows) -> list[np.ndarray]:
    """The positions that share a group, group by group in the order of their first."""
    found = defaultdict(list)
    for position, number in enumerate(rows.chosen):
        found[rows.names[number].group].append(position)
    return [np.array(positions) for positions in found.values()]


class Loader:
    """Iterator over dict batches of numpy arrays whose position is a JSON value.

    A batch holds mean, std float32 [b, h, w, c] (unscaled posterior), what is stored of context float32
    [b, l, d], pooled float32 [b, p], tokens int32 [b, l] or [b, towers, l], time_ids int32 [b, 6] and label int32
    [b], and index int32 [b], the row of each example (see `row`). `size` examples make an epoch.
    """

    def __init__(self, batches: grain.MapDataset, rows: Rows, identity: dict, size: int, threads: int):
        self.rows, self.identity, self.size = rows, identity, size
        self._iterator = iter(batches.to_iter_dataset(grain.ReadOptions(threads, PREFETCH)))

    @property
    def manifest(self) -> Manifest:
        """The manifest of the (first) folder."""
        return self.rows.manifests[0]

    def row(self, index: SupportsIndex) -> Row:
        """Key, caption, group, split and tags of a batch's "index" entry."""
        return self.rows.names[int(index)]

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return next(self._iterator)

    def get_state(self) -> dict:
        """Position after the batches handed out so far, to be stored with a checkpoint."""
        return {"position": json.loads(json.dumps(self._iterator.get_state())), **self.identity}

    def set_state(self, state: dict) -> None:
        """Go to a stored position; ValueError when it belongs to another order (data, seed or batch size)."""
        different = [
            f"{k} {state.get(k)!r}, now {v!r}" for k, v in self.identity.items() if state.get(k) != v
        ]
        if different:
            raise ValueError(
                f"the stored data position had {'; '.join(different)}; restore that or start a new run"
            )
        self._iterator.set_state(state["position"])

    def close(self) -> None:
        """Stop the reading threads."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            close()
