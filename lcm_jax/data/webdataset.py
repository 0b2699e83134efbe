"""Reader of tar shards in the webdataset layout: members that share a stem are one captioned image."""

import json
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lcm_jax.data import files, images
from lcm_jax.data.example import CAPTION_NAMES, Example, Found, counted, described, with_tag

SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")  # of several, the first is the image
TEXTS = ("txt", "json")
LABEL = "cls"
BLOCK = 512  # bytes; tar files consist of them


def examples(
    folder: str | Path | Sequence[str | Path],
    caption: str | None = None,
    tag: str | None = None,
    heldout: float = 0.1,
    threads: int = 8,
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """Every image of the .tar files below `folder` (or of a file, a glob, or a list of them), in their order.

    A member's stem reaches to the first dot of its name. KEY.jpg (.png, .webp, ...) takes its caption from
    KEY.txt or from KEY.json, whose entry is `caption` or else "text" or "caption", and which may hold `group`,
    `tags` and `label`; KEY.cls holds a label, too. Keys are SHARD/KEY. Only headers, captions and labels are
    read; `load` reads one member. An image without caption gets "", which `data.check` reports; of a damaged
    shard, what precedes the damage is found.
    Raises FileNotFoundError when there are no shards and ValueError when they hold no images.
    """
    paths = files.found(folder, (".tar",))
    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(partial(_index, caption=caption, heldout=heldout, look=look), paths, files.names(paths)))
    damage = [line for _, lines in parts for line in lines]
    found = Found((e for part, _ in parts for e in part), damage)
    if not found:
        reason = f"; {damage[0]}" if damage else f" ({', '.join(SUFFIXES)})"
        raise ValueError(f"the {len(paths)} tar shards of {folder} hold no images{reason}")
    return with_tag(found, tag)


def _index(
    path: Path, name: str, caption: str | None, heldout: float, look: images.Look
) -> tuple[list[Example], list[str]]:
    """The images of one shard and what is wrong with it."""
    try:
        samples, damage = _members(path)
    except (OSError, tarfile.ReadError) as error:
        return [], [f"{path} cannot be read as a tar archive ({error}); compressed ones have to be unpacked"]
    found, bare = [], []
    for stem, sample in samples.items():
        ending = next((s for s in SUFFIXES if s in sample), None)
        if ending is None:
            bare.append(f"{stem}: {', '.join(sample)}")
            continue
        about, wrong = _about(sample.get("json"))
        if wrong:
            damage.append(f"{path}: {stem}.json {wrong}")
        about = {**about, "label": sample[LABEL]} if LABEL in sample else about
        text = sample.get("txt", b"").strip() or next((about[n] for n in (caption, *CAPTION_NAMES) if about.get(n)), "")
        load = partial(_load, look, path, f"{stem}.{ending}", *sample[ending])
        found.append(described(f"{name}/{stem}", text, load, about, heldout))
    if bare:
        damage.append(f"{path}: {counted(len(bare), 'sample')} without an image, first {bare[0]}")
    return found, damage


def _members(path: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Stem -> ending -> (offset, size), or the content of captions, up to the first damage, and that damage."""
    samples: dict[str, dict[str, Any]] = {}
    damage, end = [], path.stat().st_size
    with tarfile.open(path, "r:") as archive:
        try:
            for member in archive:
                stem, ending = _parted(member.name)
                if not member.isreg() or not stem:
                    continue
                if member.offset_data + member.size > end:
                    raise tarfile.ReadError(f"{member.name} is cut off")
                kept = (member.offset_data, member.size)
                if ending in (*TEXTS, LABEL):
                    archive.fileobj.seek(member.offset_data)
                    kept = archive.fileobj.read(member.size)
                samples.setdefault(stem, {})[ending] = kept
            stopped = _stopped(path, archive.offset)
        except tarfile.ReadError as error:
            stopped = str(error)
    if stopped:
        last = next(reversed(samples), None)
        if last is not None and not (set(TEXTS) & samples[last].keys() and set(SUFFIXES) & samples[last].keys()):
            del samples[last]  # the rest of it lies behind the damage
        damage.append(f"{path} is truncated or damaged after {len(samples)} samples: {stopped}")
    return samples, damage


def _parted(member: str) -> tuple[str, str]:
    """ "a/b.seg.PNG" -> ("a/b", "seg.png"); hidden files have no stem."""
    folder, _, name = member.removeprefix("./").rpartition("/")
    first, _, ending = name.partition(".")
    return (f"{folder}/{first}" if folder and first else first), ending.lower()


def _stopped(path: Path, offset: int) -> str:
    """What is wrong where reading stopped, "" for an end mark: at a broken header tarfile stops without a word."""
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(BLOCK)
    if len(block) < BLOCK:
        return f"no end mark at byte {offset}"
    return f"no tar header at byte {offset}" if any(block) else ""


def _about(content: bytes | None) -> tuple[dict, str]:
    if content is None:
        return {}, ""
    try:
        about = json.loads(content)
    except ValueError as error:  # also of bytes that are no text
        return {}, f"is not JSON ({error})"
    return (about, "") if isinstance(about, dict) else ({}, "is not a JSON object")


def _load(look: images.Look, path: Path, member: str, offset: int, size: int) -> np.ndarray:
    name = f"image {member} in {path}"
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error}); restore the shard") from error
    return look.decode_bytes(content, name)
