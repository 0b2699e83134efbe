"""Find what is wrong with a data set before it is trained on: one line a problem."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from lcm_jax.data import manifest, shards
from lcm_jax.data.classes import class_names
from lcm_jax.data.example import Example, counted


@dataclass(frozen=True)
class Problem:
    """Something to mend: which example or file, and what is wrong with it."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


def check(
    target: Sequence[Example] | str | Path,
    image_size: int | None = None,
    threads: int = 8,
    progress: bool = True,
) -> list[Problem]:
    """All problems of captioned images, or of an encoded latent folder when `target` is a path.

    Images: damage of what holds them, unreadable or truncated ones, no caption, key used twice, and shorter
    side below `image_size` pixels. Latents: unfinished encoding, missing, truncated or corrupt shards, broken
    side files, wrong counts, arrays missing or of other shapes.
    """
    if isinstance(target, str | Path):
        return _check_folder(Path(target), threads, progress)
    return _check_examples(target, image_size, threads, progress)


def report(problems: Sequence[Problem], limit: int = 50) -> str:
    """The problems one to a line, the first `limit` of them, with a last line that counts."""
    lines = [str(p) for p in problems[:limit]]
    if len(problems) > limit:
        lines.append(f"... and {len(problems) - limit} more")
    lines.append(counted(len(problems), "problem") if problems else "no problems found")
    return "\n".join(lines)


def _check_examples(
    examples: Sequence[Example], image_size: int | None, threads: int, progress: bool
) -> list[Problem]:
    if not examples:
        return [Problem("data set", "empty: the reader found no images")]

    def one(example: Example) -> list[Problem]:
        problems = []
        if not example.caption.strip():
            problems.append(Problem(example.key, "no caption; add one or remove the image"))
        try:
            height, width = example.load().shape[:2]
        except ValueError as error:
            return [*problems, Problem(example.key, str(error))]
        if image_size is not None and min(height, width) < image_size:
            small = (
                f"{width}x{height} pixels is smaller than the image size {image_size}; replace or remove it"
            )
            problems.append(Problem(example.key, small))
        return problems

    found = [Problem("data set", damage) for damage in getattr(examples, "damage", ())]
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(one, examples)
        for problems in tqdm(results, "check", len(examples), unit="image", disable=not progress):
            found += problems
    try:
        class_names(examples)
    except ValueError as error:
        found.append(Problem("data set", str(error)))
    for key, n in Counter(e.key for e in examples).items():
        if n > 1:
            found.append(Problem(key, f"the key occurs {n} times; keys name one image each"))
    return found


def _check_folder(folder: Path, threads: int, progress: bool) -> list[Problem]:
    try:
        made = manifest.read(folder)
        manifest.rows(folder)
    except (FileNotFoundError, ValueError) as error:
        return [Problem(str(folder), str(error))]
    found = []
    for kind in (name for name in manifest.CAPTION_ARRAYS if name in made.shapes):
        try:
            manifest.unconditional(folder, kind)
        except ValueError as error:
            found.append(Problem(manifest.UNCONDITIONAL.format(kind), str(error)))
    try:
        manifest.element_stats(folder)
    except ValueError as error:
        found.append(Problem(manifest.ELEMENTS, str(error)))
    try:
        if len(manifest.skipped(folder)) != made.skipped:
            found.append(Problem(manifest.SKIPPED, f"does not list the {made.skipped} images that were left out"))
    except ValueError as error:
        found.append(Problem(manifest.SKIPPED, str(error)))

    def one(shard: dict) -> list[Problem]:
        problems = manifest.shard_problems(folder, [shard], hashes=True)
        if problems:
            return [Problem(shard["file"], p) for p in problems]
        stored = shards.Shard(folder / shard["file"])
        try:
            count = stored.count()
            read = stored.read([0]) if count else []
        except ValueError as error:
            return [Problem(shard["file"], str(error))]
        if count != shard["count"]:
            return [Problem(shard["file"], f"holds {count} records, the manifest says {shard['count']}")]
        for _, arrays in read:
            shapes = {name: array.shape for name, array in arrays.items() if name != "logvar"}
            if shapes != made.shapes:
                return [Problem(shard["file"], f"holds {shapes}, the manifest says {made.shapes}; encode it again")]
        return []

    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(one, made.shards)
        for problems in tqdm(results, "check", len(made.shards), unit="shard", disable=not progress):
            found += problems
    return found
