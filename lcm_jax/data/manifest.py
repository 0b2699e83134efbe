"""The manifest of a latent data set: what the folder holds, who made it, and whether it fits a model."""

import json
import os
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from lcm_jax.data import shards
from lcm_jax.data.example import TRAIN

FORMAT, VERSION = "lcm_jax.latents", 1
MAKERS = "launch.encode or launch.synthesize"
PICTURES = "or this is a folder of pictures: encode it first"
FILE, ROWS, SKIPPED = "manifest.json", "rows.jsonl", "skipped.jsonl"
TIME_IDS = 6  # original height and width, top and left of the crop, target height and width
CAPTION_ARRAYS = ("context", "pooled", "tokens")
STATISTICS = ("element", "channel")  # over what their mean and std are taken
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
    # Entries that older folders lack.
    pooled_width: int | None = None  # of a second state that sums the caption up (SDXL)
    tokens_towers: int | None = None  # ids are [towers, l] for a model with several text encoders, else [l]
    size_ids: bool = False  # whether "time_ids" are stored
    crop: dict = field(default_factory=dict)  # settings of data.crop.Crop that are not the default
    skipped: int = 0  # images that were left out and damaged files, listed in skipped.jsonl
    sketch: tuple[float, ...] = ()  # numbers of the autoencoder that made the latents (models.encoder_sketch)
    classes: tuple[str, ...] = ()  # names of the classes, in the order of the labels' numbers

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each stored array of one example but the logvar, by name."""
        towers = () if self.tokens_towers is None else (self.tokens_towers,)
        found = {
            "mean": tuple(self.latent_shape),
            "context": None if self.context_shape is None else tuple(self.context_shape),
            "pooled": None if self.pooled_width is None else (self.pooled_width,),
            "tokens": None if self.tokens_length is None else (*towers, self.tokens_length),
            "time_ids": (TIME_IDS,) if self.size_ids else None,
        }
        return {name: shape for name, shape in found.items() if shape is not None}


@dataclass(frozen=True)
class Row:
    """Name of one example; its row index is its position in `rows(folder)` and the loader's "index"."""

    key: str
    caption: str
    group: str
    split: str
    tags: tuple[str, ...]
    label: int | None = None  # place of its class among the manifest's

    def to_json(self) -> dict:
        """A JSON value; rows without a label are written as they were before there were any."""
        return {name: value for name, value in asdict(self).items() if name != "label" or value is not None}


def read(folder: str | Path) -> Manifest:
    """The manifest of `folder`; FileNotFoundError or ValueError say what is wrong with it and what to do."""
    folder = Path(folder)
    path = folder / FILE
    if not folder.is_dir():
        raise FileNotFoundError(f"latent folder {folder} does not exist; make it with {MAKERS}")
    if not path.exists():
        unfinished = f"what makes it has not finished; run {MAKERS} again"
        raise FileNotFoundError(f"{folder} has no {FILE}: {unfinished}, {PICTURES}")
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
    needed = {f.name for f in fields(Manifest) if f.default is MISSING and f.default_factory is MISSING}
    missing = needed - content.keys()
    if missing or content.keys() - names:
        odd = ", ".join(sorted(missing | (content.keys() - names)))
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
    """What the empty caption encodes to: "context" float32 [l, d], "pooled" float32 [p], "tokens" int32 [l]."""
    array = _array(Path(folder) / UNCONDITIONAL.format(kind))
    return array.astype(np.int32 if kind == "tokens" else np.float32)


def unconditionals(folder: str | Path) -> dict[str, np.ndarray]:
    """`unconditional` of every array that the folder stores of its captions, by name."""
    stored = read(folder).shapes
    return {kind: unconditional(folder, kind) for kind in CAPTION_ARRAYS if kind in stored}


def element_stats(folder: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of sampled, unscaled latents for each element, float32 [h, w, c] both; ValueError if broken."""
    path, wanted = Path(folder) / ELEMENTS, (2, *read(folder).latent_shape)
    array = _array(path)
    if array.shape != wanted or array.dtype != np.float32 or not np.isfinite(array).all():
        raise ValueError(
            f"{path} is {array.dtype} {_size(array.shape)}, mean and std are finite float32 {_size(wanted)}; delete it "
            "and encode the data set again"
        )
    return array[0], array[1]


def statistics(folders: Sequence[str | Path], per: str = "element") -> tuple[np.ndarray, np.ndarray]:
    """Mean and std [h, w, c] of unscaled latents, of every "element" or of every "channel" over the whole image.

    Several folders count as one, each by the examples it was measured on: its train split's, where it has one. Raises
    ValueError for another word, and for latents of which an element never changes.
    """
    check_statistics(per)
    made = [read(folder) for folder in folders]
    if per == "element":
        stats = np.array([element_stats(folder) for folder in folders], np.float64)
    else:
        wide = lambda m: [np.broadcast_to(values, m.latent_shape) for values in (m.channel_mean, m.channel_std)]
        stats = np.array([wide(m) for m in made])
    means, stds = stats[:, 0], stats[:, 1]
    counts = np.array([m.counts.get(TRAIN, sum(m.counts.values())) for m in made])
    share = (counts / counts.sum()).reshape(-1, 1, 1, 1)
    mean = (share * means).sum(0)
    std = np.sqrt((share * (stds**2 + (means - mean) ** 2)).sum(0))  # the law of total variance
    return usable(mean, std, folders)


def check_statistics(per: str) -> None:
    """ValueError for a word that names no statistics of latents."""
    if per not in STATISTICS:
        raise ValueError(f"config.data.statistics is {per!r}; choose {' or '.join(map(repr, STATISTICS))}")


def usable(mean: np.ndarray, std: np.ndarray, folders: Sequence[str | Path]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std as float32; ValueError where an element of the latents of these folders never changes."""
    if not (std > 0).all():
        where = tuple(int(i) for i in np.argwhere(~(std > 0))[0])
        named = ", ".join(map(str, folders))
        raise ValueError(
            f"{named}: element {where} of the latents never changes: set config.data.statistics to 'channel'"
        )
    return mean.astype(np.float32), std.astype(np.float32)


def check_fits(
    manifest: Manifest,
    latent_shape: tuple[int, ...],
    context_width: int | None = None,
    pooled_width: int | None = None,
    size_ids: bool = False,
    tokens_shape: tuple[int, ...] | None = None,
) -> None:
    """ValueError when the stored arrays do not fit a model of `latent_shape` (h, w, c) and what else is given.

    `context_width` and `pooled_width` are those of the captions' states, `size_ids` says that the model reads
    them, `tokens_shape` is that of the ids a model with text encoders of its own reads: [l] or [towers, l].
    """
    made = "re-encode the data with this model's encoders, or choose the config the data was made for"
    stored, wanted = tuple(manifest.latent_shape), tuple(latent_shape)
    if stored[-1] != wanted[-1]:
        raise ValueError(f"latents have {stored[-1]} channels, the model takes {wanted[-1]}; {made}")
    if stored != wanted:
        raise ValueError(f"latents are {_size(stored)}, the model takes {_size(wanted)}; {made}")
    for name, width in (("context", context_width), ("pooled", pooled_width)):
        what = "text context" if name == "context" else "pooled text state"
        shape = manifest.shapes.get(name)
        if width is not None and shape is None:
            raise ValueError(f"the data set stores no {what}, the model takes width {width}; {made}")
        if width is not None and shape[-1] != width:
            raise ValueError(f"{what} is {shape[-1]} wide, the model takes {width}; {made}")
    if size_ids and not manifest.size_ids:
        raise ValueError("the data set stores no size ids, the model takes them; encode it again with size_ids")
    if tokens_shape is not None:
        ids = manifest.shapes.get("tokens")
        if ids is None:
            raise ValueError("the data set stores no token ids, the model takes them; encode it again with tokens")
        if ids != tuple(tokens_shape):
            raise ValueError(f"token ids are {_size(ids)}, the model takes {_size(tokens_shape)}; {made}")


def check_classes(classes: Sequence[str], count: int, names: Sequence[str] = ()) -> None:
    """ValueError when a data set's do not fit a network of `count` classes, of these `names` where it knows them."""
    if not count:
        return
    if not classes:
        raise ValueError(
            f"the data set has no labels, the network takes {count} classes: encode the data with labels, or leave "
            "config.model.classes out"
        )
    if len(classes) != count:
        raise ValueError(f"the data set has {len(classes)} classes, the network {count}: make them equal")
    for i, (stored, name) in enumerate(zip(classes, names, strict=False)):
        if stored != name:
            raise ValueError(f"label {i} is {stored!r} in the data set and {name!r} of the network: encode it alike")


def skipped(folder: str | Path) -> dict[str, str]:
    """Key -> reason of what encoding left out, "damaged file 1" and images in their order; empty without a list."""
    path = Path(folder) / SKIPPED
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        return {row["key"]: row["reason"] for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is broken ({error!r}); encode the data set again with overwrite") from None


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


def shards_of(manifest: Manifest, split: str | None) -> list[dict]:
    """The shards that hold a split, all for None."""
    return [shard for shard in manifest.shards if split is None or shard["split"] == split]


def _array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} is missing or broken ({error}); delete it and encode the data set again") from None


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape)
