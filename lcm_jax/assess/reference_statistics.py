"""Feature statistics of the real images, taken once and kept with everything they depend on."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lcm_jax.data import images as pixels
from lcm_jax.evaluate.feature_statistics import FeatureStatistics, merged_over_hosts, statistics
from lcm_jax.evaluate.features import BATCH, FeatureNet, Images, Set, fingerprint
from lcm_jax.evaluate.frechet import Moments, moments_of
from lcm_jax.parallel.agreement import on_all
from lcm_jax.weights.folder import write_bytes

FORMAT = 1
THREADS = 4  # that decode
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # of a file that is no whole .npz


@dataclass(frozen=True, eq=False)
class RealImages:
    """Pictures that are read set by set, and what tells them from all others."""

    identity: str  # hash of every picture and of how it comes to size
    count: int  # over all hosts
    sets: Callable[[], Iterable[Set]]  # this host's part


def of_arrays(images: Images) -> RealImages:
    """Pictures in memory, the same on every host; each takes its part."""
    own = images[jax.process_index() :: jax.process_count()]
    return RealImages(fingerprint(images), len(images), lambda: [own])


def of_files(paths: Sequence[Path], size: int, batch: int = BATCH) -> RealImages:
    """Picture files, `fit` to size x size; their bytes are the identity, so that one changed in place is noticed.

    Every host names all files and decodes its part. Raises ValueError for no files, OSError for one that is missing.
    """
    if not paths:
        raise ValueError("no files of real images")
    digest = hashlib.sha256(f"fit {size} Lanczos\n".encode())
    for path in paths:
        with Path(path).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    own = paths[jax.process_index() :: jax.process_count()]

    def sets() -> Iterator[Set]:
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(own), batch):
                loaded = pool.map(lambda path: pixels.fit(pixels.PLAIN.decode(path), size), own[start : start + batch])
                yield np.stack(list(loaded))

    return RealImages(digest.hexdigest()[:16], len(paths), sets)


def reference(
    net: FeatureNet, real: RealImages, keep: str | Path, batch: int = BATCH, done: Callable[[int], object] = int
) -> FeatureStatistics:
    """Statistics of the real images through the network, from the folder `keep` if they were taken before.

    What was kept counts only for these very pictures, these weights and this resize, all named in the file, and only
    if its numbers still have the checksum they were written with; else it is made anew. The file also holds `mu` and
    `sigma` by which other FID programs read published statistics. All processes must call it.
    """
    about = {
        "format": FORMAT,
        "network": net.name,
        "weights": net.hash,
        "resize": net.resize,
        "images": real.identity,
        "count": real.count,
    }
    path = Path(keep) / f"{net.name}-{fingerprint(json.dumps(about, sort_keys=True))}.npz"
    kept = _read(path, about)
    if not on_all(kept is not None):
        kept = merged_over_hosts(statistics(net, real.sets(), batch, done))
        if kept.count != real.count:
            raise ValueError(f"{kept.count} of {real.count} real images were read: give all of them")
        _write(path, about, kept)
    return kept


def published(path: str | Path) -> Moments:
    """Mean and covariance (`mu`, `sigma`) that an FID program wrote as .npz; ValueError for another file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, covariance = np.asarray(file["mu"], np.float64), np.asarray(file["sigma"], np.float64)
    except FileNotFoundError:
        raise
    except _UNREADABLE as error:
        raise ValueError(f"{path} holds no mu and sigma ({error}): give what an FID program wrote") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"{path} has mu {mean.shape} and sigma {covariance.shape}, which do not fit: write it again")
    return moments_of(mean, covariance)


def _write(path: Path, about: dict[str, Any], found: FeatureStatistics) -> None:
    content = io.BytesIO()
    numbers = {"mu": found.mean, "sigma": found.covariance, "scatter": found.scatter}
    said = json.dumps(about | {"checksum": fingerprint(found.mean, found.scatter)})
    np.savez(content, about=np.array(said), **numbers)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def _read(path: Path, about: dict[str, Any]) -> FeatureStatistics | None:
    """The statistics of a file that says and is what it must be, None else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            said, mean, scatter = json.loads(str(file["about"])), file["mu"], file["scatter"]
    except _UNREADABLE:
        return None
    if said != about | {"checksum": fingerprint(mean, scatter)}:
        return None
    return FeatureStatistics(about["count"], mean, scatter)
