"""Feature statistics of the real images, taken once and kept with everything they depend on."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Integer
from tqdm import tqdm

from lcm_jax.data import images as pixels
from lcm_jax.evaluate.feature_statistics import FeatureStatistics, joined_over_hosts, merged_over_hosts, statistics
from lcm_jax.evaluate.features import BATCH, FeatureNet, Features, Images, Set, feature_batches, fingerprint
from lcm_jax.parallel.agreement import on_all
from lcm_jax.weights.folder import write_bytes

FORMAT = 1
THREADS = 4  # that decode
Rows = Integer[np.ndarray, " n"]
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of a file that is no whole .npz


@dataclass(frozen=True, eq=False)
class RealImages:
    """Pictures that are read set by set, and what tells them from all others."""

    identity: str  # hash of every picture and of how it comes to size
    count: int
    load: Callable[[Rows], Images]  # those of some numbers

    def sets(self, batch: int = BATCH, rows: Rows | None = None) -> Iterator[Set]:
        """This host's part of all pictures, or of `rows`, `batch` at a time; hosts take turns."""
        own = (np.arange(self.count) if rows is None else rows)[jax.process_index() :: jax.process_count()]
        for start in range(0, len(own), batch):
            yield self.load(own[start : start + batch])


def of_files(paths: Sequence[Path], size: int) -> RealImages:
    """Picture files, `fit` to size x size; their bytes are the identity, so that one changed in place is noticed.

    Every host names all files and decodes its part. Raises ValueError for no files, OSError for one that is missing.
    """
    if not paths:
        raise ValueError("no files of real images")
    digest = hashlib.sha256(f"fit {size} Lanczos\n".encode())
    for path in paths:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    one = lambda path: pixels.fit(pixels.PLAIN.decode(path), size)
    return RealImages(digest.hexdigest()[:16], len(paths), lambda rows: threaded(one, [paths[i] for i in rows]))


def of_loads(loads: Sequence[Callable[[], np.ndarray]], progress: bool = False) -> RealImages:
    """Pictures of one size, each by a function of its own; their pixels are the identity.

    So all are decoded once more, each by one of the hosts. Raises ValueError for no pictures; all hosts must call it.
    """
    if not loads:
        raise ValueError("no real images")
    digests = np.zeros((len(loads), hashlib.sha256().digest_size), np.uint8)
    own = range(jax.process_index(), len(loads), jax.process_count())
    of_one = lambda i: np.frombuffer(hashlib.sha256(np.ascontiguousarray(loads[i]())).digest(), np.uint8)
    with ThreadPoolExecutor(THREADS) as pool:
        found = tqdm(pool.map(of_one, own), "images", len(own), unit="image", disable=not progress)
        for i, digest in zip(own, found, strict=True):
            digests[i] = digest
    if jax.process_count() > 1:
        digests = multihost_utils.process_allgather(digests).max(0)
    return RealImages(fingerprint(digests), len(loads), lambda rows: threaded(lambda i: loads[i](), rows))


def threaded(load: Callable[[Any], np.ndarray], some: Sequence[Any] | Rows) -> Images:
    """Pictures decoded side by side, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        return np.stack(list(pool.map(load, some)))


def reference(net: FeatureNet, real: RealImages, keep: str | Path, batch: int = BATCH) -> FeatureStatistics:
    """Statistics of the real images through the network, from the folder `keep` if they were taken before.

    What was kept counts only for these very pictures, these weights and this resize, all named in the file, and only
    if its numbers still have the checksum they were written with; else it is made anew. The file also holds `mu` and
    `sigma` by which other FID programs read published statistics. All processes must call it.
    """
    about = _about(net, real)
    path = _path(keep, about)
    kept = _read(path, about, ("mu", "scatter"))
    if not on_all(kept is not None):
        found = merged_over_hosts(statistics(net, real.sets(batch), batch))
        if found.count != real.count:
            raise ValueError(f"{found.count} of {real.count} real images were read: give all of them")
        _write(path, about, {"mu": found.mean, "scatter": found.scatter}, sigma=found.covariance)
        return found
    return FeatureStatistics(real.count, *kept)


def some_features(net: FeatureNet, real: RealImages, n: int, keep: str | Path, batch: int = BATCH) -> Features:
    """Features [n, d] of n of the real images, drawn with a fixed seed; kept as `reference` keeps. All must call it.

    Raises ValueError for more than there are.
    """
    if n > real.count:
        raise ValueError(f"{n} of {real.count} real images were asked for: lower the number")
    about = {**_about(net, real), "some": n}
    path = _path(keep, about)
    kept = _read(path, about, ("features",))
    if not on_all(kept is not None):
        rows = np.sort(np.random.default_rng(0).choice(real.count, n, replace=False))
        own = list(feature_batches(net, real.sets(batch, rows), batch))
        kept = (joined_over_hosts(np.concatenate(own), n),)
        _write(path, about, {"features": kept[0]})
    return kept[0]


def _about(net: FeatureNet, real: RealImages) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "network": net.name,
        "weights": net.hash,
        "resize": net.resize,
        "images": real.identity,
        "count": real.count,
    }


def _path(keep: str | Path, about: dict[str, Any]) -> Path:
    return Path(keep) / f"{about['network']}-{fingerprint(json.dumps(about, sort_keys=True))}.npz"


def _write(path: Path, about: dict[str, Any], numbers: dict[str, np.ndarray], **more: np.ndarray) -> None:
    """`numbers` are what is read again, `more` is for others."""
    content = io.BytesIO()
    said = json.dumps(about | {"checksum": fingerprint(*numbers.values())})
    np.savez(content, about=np.array(said), **numbers, **more)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def _read(path: Path, about: dict[str, Any], names: Sequence[str]) -> tuple[np.ndarray, ...] | None:
    """The numbers of a file that says and is what it must be, None else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            said, numbers = json.loads(str(file["about"])), tuple(file[name] for name in names)
    except _UNREADABLE:
        return None
    return numbers if said == about | {"checksum": fingerprint(*numbers)} else None
