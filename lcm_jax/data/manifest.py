"""The manifest of a latent data set: what the folder holds, who made it, and whether it fits a model."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from lcm_jax.data import shards

FORMAT, VERSION = "lcm_jax.latents", 1
FILE, ROWS = "manifest.json", "rows.jsonl"
UNCONDITIONAL, ELEMENTS = "unconditional_{}.npy", "element_stats.npy"


@dataclass(frozen=True)
class Manifest:
    """Everything about the folder but the arrays: shapes of one example, statistics of the train split."""

    image_size: int  # pixels
    latent_shape: tuple[int, ...]  # (h, w, c)
    context_shape: tuple[int, ...] | None  # (l, d); None when captions are stored as tokens only
    tokens_length: int | None
    counts: dict[str, int]  # examples per split
    scale: float  # 1 / std of sampled latents over all elements
    channel_mean: tuple[float, ...]
    channel_std: tuple[float, ...]  # of sampled latents, unscaled
    encoders: dict  # identity and hashes of what made the arrays
    dataset: dict  # name, attribution
    plan: dict[str, str]  # fingerprint of how the folder was made, for resuming
    shards: tuple[dict, ...]  # file, split, first_row, count, bytes, sha256
    rows_sha256: str
    format: str = FORMAT
    version: int = VERSION


@dataclass(frozen=True)
class Row:
    """Name of one example; its row index is its position in `rows(folder)` and the loader's "index"."""

    key: str
    caption: str
    group: str
    split: str
    tags: tuple[str, ...]


def read(folder: str | Path) -> Manifest:
    """The manifest of `folder`; FileNotFoundError or ValueError say what is wrong with it and what to do."""
    folder = Path(folder)
    path = folder / FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"latent folder {folder} does not exist; make it with launch.encode")
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no {FILE}: encoding has not finished; run launch.encode again")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); encode the data set again with overwrite") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is not a latent data set (its format is not {FORMAT!r}); give another folder"
        )
    if content.get("version") != VERSION:
        raise ValueError(
            f"{path} has version {content.get('version')}, this code reads {VERSION}; encode again"
        )
    names = {f.name for f in fields(Manifest)}
    if names != content.keys():
        odd = ", ".join(sorted(names ^ content.keys()))
        raise ValueError(f"{path} has missing or unknown entries ({odd}); encode the data set again")
    lists = {k: tuple(v) for k, v in content.items() if isinstance(v, list)}
    return Manifest(**{**content, **lists})


def write(folder: str | Path, manifest: Manifest) -> None:
    """Write the manifest in one move; its presence says that the data set is complete."""
    write_text(Path(folder) / FILE, json.dumps(asdict(manifest), indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one move."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def rows(folder: str | Path) -> list[Row]:
    """Names of all examples by row index: train first, then held-out; ValueError if tampered with."""
    path = Path(folder) / ROWS
    if not path.exists() or shards.sha256(path) != read(folder).rows_sha256:
        raise ValueError(f"{path} is missing or not the manifest's (its sha256 differs); encode again")
    lines = path.read_text(encoding="utf-8").split("\n")
    return [Row(**{**row, "tags": tuple(row["tags"])}) for row in map(json.loads, filter(None, lines))]


def unconditional(folder: str | Path, kind: str = "context") -> np.ndarray:
    """What the empty caption encodes to: context float32 [l, d], or tokens int32 [l] for kind "tokens"."""
    path = Path(folder) / UNCONDITIONAL.format(kind)
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is missing or broken ({error}); encode the data set again") from None
    return array.astype(np.int32 if kind == "tokens" else np.float32)


def element_stats(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of sampled, unscaled latents for each element, float32 [h, w, c] both."""
    mean, std = np.load(Path(folder) / ELEMENTS, allow_pickle=False)
    return mean, std


def check_fits(manifest: Manifest, latent_shape: tuple[int, ...], context_width: int | None = None) -> None:
    """ValueError when the stored arrays do not fit a model of `latent_shape` (h, w, c) and context width."""
    made = "re-encode the data with this model's encoders, or choose the config the data was made for"
    stored, wanted = tuple(manifest.latent_shape), tuple(latent_shape)
    if stored[-1] != wanted[-1]:
        raise ValueError(f"latents have {stored[-1]} channels, the model takes {wanted[-1]}; {made}")
    if stored != wanted:
        raise ValueError(f"latents are {_size(stored)}, the model takes {_size(wanted)}; {made}")
    if context_width is None:
        return
    if manifest.context_shape is None:
        raise ValueError(
            f"the data set stores no text context, the model takes width {context_width}; {made}"
        )
    if manifest.context_shape[-1] != context_width:
        width = manifest.context_shape[-1]
        raise ValueError(f"text context is {width} wide, the model takes {context_width}; {made}")


def shard_problems(folder: str | Path, listed: Sequence[dict], hashes: bool = False) -> list[str]:
    """What is wrong with the shard files, a line each: missing, wrong size, with `hashes` any change."""
    problems = []
    for shard in listed:
        path = Path(folder) / shard["file"]
        if not path.exists():
            problems.append(f"shard {path} is missing; restore it or encode again with overwrite")
        elif path.stat().st_size != shard["bytes"]:
            size = f"{path.stat().st_size} bytes instead of {shard['bytes']}"
            problems.append(f"shard {path} is truncated or changed ({size}); restore it or encode again")
        elif hashes and shards.sha256(path) != shard["sha256"]:
            problems.append(f"shard {path} is corrupt (its sha256 differs); restore it or encode again")
    return problems


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)
