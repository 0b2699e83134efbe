"""Latent folders on object stores: a copy on this machine of what will be read, checked against the manifest."""

import logging
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from lcm_jax.data import manifest
from lcm_jax.data.store import Store, StoreError, cache_folder, is_url, locked

log = logging.getLogger(__name__)
THREADS = 8  # shards on their way at once
PAUSES = (2.0, 8.0)  # seconds before a shard that came broken, or not at all, is asked for again


def here(folder: str | Path, split: str | None = None) -> Path:
    """The folder itself, or of one on an object store a copy without the shards of other splits than `split`.

    The shuffle is global, so every process may read every row of its split: each machine copies all of its shards,
    once, into the cache folder of the URL and of the manifest's content. Raises FileNotFoundError where there is no
    data set, StoreError where the store fails, ValueError for a shard that is not the manifest's, OSError for a full
    disk.
    """
    if not is_url(folder):
        return Path(folder)
    store = Store(str(folder))
    listed = store.list()
    if manifest.FILE not in listed:
        raise FileNotFoundError(f"{store.url} has no {manifest.FILE}: copy a whole folder of launch.encode there")
    copy = cache_folder("latents", store.url, store.read(manifest.FILE).decode())
    with locked(copy):
        beside = [name for name in listed if not name.endswith(".array_record") and "/" not in name]
        for name in beside:
            if not (copy / name).exists():
                store.get(name, copy / name)
        wanted = manifest.shards_of(manifest.read(copy), split)
        missing = [shard for shard in wanted if manifest.shard_problems(copy, [shard])]
        needed = sum(shard["bytes"] for shard in missing)
        _check_space(copy, needed)
        with tqdm(total=needed, desc=f"copy {store.url}", unit="B", unit_scale=True, disable=None) as bar:
            with ThreadPoolExecutor(THREADS) as pool:
                for shard in pool.map(lambda shard: _fetch(store, shard, copy), missing):
                    bar.update(shard["bytes"])
    return copy


def _fetch(store: Store, shard: dict, copy: Path) -> dict:
    for pause in PAUSES:
        try:
            return _fetch_once(store, shard, copy)
        except (StoreError, ValueError) as error:
            log.warning("%s; tried again in %.0f s", error, pause)
            time.sleep(pause)
    return _fetch_once(store, shard, copy)


def _fetch_once(store: Store, shard: dict, copy: Path) -> dict:
    path = copy / shard["file"]
    try:
        store.get(shard["file"], path)
    except FileNotFoundError:
        raise FileNotFoundError(f"shard {store.url}/{shard['file']} is missing: copy it there again") from None
    if manifest.shard_problems(copy, [shard], hashes=True):
        path.unlink()  # what lies here is whole
        raise ValueError(f"shard {store.url}/{shard['file']} is not the manifest's: copy it there again")
    return shard


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"disk full: the latents take {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free in {folder}; "
            "LCM_JAX_CACHE names another place"
        )
