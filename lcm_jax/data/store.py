"""Folders of object stores, gs:// and s3://: listed, copied here and sent there through fsspec."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import fsspec

from lcm_jax import cache

INSTALLED = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # library of fsspec, extra of setup.cfg
LOGIN = {
    "gs": "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS",
    "s3": "AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL where it is not Amazon's",
}
# Both libraries repeat what failed, waiting twice as long each time; gcsfs six times unless told otherwise. Neither may
# answer from what it listed before: other machines write, too.
OPTIONS = {
    "gs": {"use_listings_cache": False},
    "s3": {"use_listings_cache": False, "config_kwargs": {"retries": {"max_attempts": 6, "mode": "standard"}}},
}
PARTIAL = ".partial"


class StoreError(OSError):
    """An object store did not answer, or refused; the message names the URL and what to check."""


class Stored(NamedTuple):
    """What a store says of a file."""

    size: int  # bytes
    tag: str | None  # another one after any change


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path lies on an object store."""
    return "://" in os.fspath(path)


def scheme(url: str) -> str:
    """ "gs" or "s3"; ValueError for another."""
    found = url.partition("://")[0]
    if found not in INSTALLED:
        raise ValueError(f"{url}: of object stores gs:// and s3:// are known; copy the folder to this machine")
    return found


class Store:
    """A folder of an object store; its files go by their names below it.

    Requests that fail are repeated by gcsfs and s3fs with growing pauses, for about half a minute. Raises StoreError
    when they give up, FileNotFoundError for what is not there, ImportError naming the extra that is not installed.
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._scheme = scheme(url)
        self._root = self.url.partition("://")[2]
        if not self._root:
            raise ValueError(f"{url} names no bucket: give {self._scheme}://BUCKET/FOLDER")
        library, extra = INSTALLED[self._scheme]
        try:
            self._files = fsspec.filesystem(self._scheme, **OPTIONS[self._scheme])
        except ImportError:
            raise ImportError(f"{url} needs {library}: pip install -e '.[{extra}]'") from None
        logging.getLogger(library).setLevel(logging.CRITICAL)  # a traceback for each try; the error says it once
        logging.getLogger("fsspec").setLevel(logging.WARNING)  # a line for each file

    def list(self) -> dict[str, Stored]:
        """The files below the folder by name; none where there is no such folder."""
        with self._told():
            try:
                found = self._files.find(self._root, detail=True)
            except FileNotFoundError:
                return {}
        below = self._root + "/"
        named = {path.removeprefix(below): info for path, info in found.items() if path.startswith(below)}
        return {name: Stored(info["size"], _tag(info)) for name, info in named.items() if not name.endswith("/")}

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._told():
            return self._files.cat_file(self._at(name))

    def get(self, name: str, target: Path) -> None:
        """Copies a file here; it appears whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
        try:
            with self._told():
                self._files.get_file(self._at(name), str(partial))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def put(self, source: Path, name: str) -> None:
        """Sends a file there; objects appear whole or not at all."""
        with self._told():
            try:
                self._files.put_file(str(source), self._at(name))
            except FileNotFoundError:
                if source.exists():
                    raise OSError("no such bucket") from None
                raise

    def write(self, name: str, content: bytes) -> None:
        """Writes a small file there."""
        with self._told():
            self._files.pipe_file(self._at(name), content)

    def remove(self, name: str) -> None:
        """Removes a file."""
        with self._told():
            self._files.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _told(self) -> Iterator[None]:
        # Every library has errors of its own: HttpError, ClientError, RefreshError, ... and OSError's heirs.
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            cause = " ".join(str(error).split())[:200] or type(error).__name__
            raise StoreError(
                f"{self.url} cannot be used ({cause}): check the name of the bucket, the network and the credentials "
                f"({LOGIN[self._scheme]})"
            ) from error


def cache_folder(kind: str, url: str, version: str = "") -> Path:
    """Where a folder of a store is copied to on this machine."""
    key = hashlib.sha256(f"{url.rstrip('/')}\n{version}".encode()).hexdigest()[:16]
    return cache.folder() / kind / f"{url.rstrip('/').rpartition('/')[2]}-{key}"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes a folder that processes of this machine share, and lets one at a time change it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tag(info: dict) -> str | None:
    return info.get("etag") or info.get("ETag") or info.get("generation")
