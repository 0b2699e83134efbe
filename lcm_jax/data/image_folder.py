"""Reader of a folder of images captioned by metadata.jsonl, metadata.csv or a .txt file beside each image."""

import csv
import json
import math
from functools import partial
from io import StringIO
from pathlib import Path

from lcm_jax.data import files, images, text_file
from lcm_jax.data.example import HELDOUT, TRAIN, Example, label_of, one_line, split_of, with_tag

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
CAPTION_COLUMNS = ("text", "caption")


def examples(
    folder: str | Path,
    tag: str | None = None,
    heldout: float = 0.1,
    caption: str = "",
    subfolders: bool = False,
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """Every image below `folder`, sorted by key (its path inside the folder).

    A metadata row holds `file_name` and `text` (or `caption`), and may hold `group`, `split`, `tags` and
    `label`. With `subfolders` the label is the name of the first folder inside `folder` that an image lies in. An
    image that no row or .txt file names gets `caption`, in which {} stands for the label; of "" `data.check`
    reports it. `group` is the key unless given.
    Raises FileNotFoundError for a missing folder; ValueError for unreadable metadata, with the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"image folder {folder} does not exist; give the folder that holds the images"
        )
    rows = _metadata(folder)
    listed = {row["file_name"] for row in rows}
    for path in files.below(folder):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() in SUFFIXES and name not in listed:
            rows.append({"file_name": name, "text": _sidecar(path)})
    if not rows:
        raise ValueError(f"image folder {folder} holds no images ({', '.join(sorted(SUFFIXES))})")
    rows.sort(key=lambda row: row["file_name"])
    return with_tag([_example(folder, row, heldout, caption, subfolders, look) for row in rows], tag)


def _example(
    folder: Path, row: dict, heldout: float, default: str, subfolders: bool, look: images.Look
) -> Example:
    key = row["file_name"]
    label = label_of(Path(key).parts[0] if subfolders and len(Path(key).parts) > 1 else row.get("label"))
    default = default if label is None else default.replace("{}", label)
    caption = next((row[c] for c in CAPTION_COLUMNS if row.get(c) or row.get(c) == 0), default)
    group = str(row.get("group") or key)
    split = row.get("split") or split_of(group, heldout)
    if split not in (TRAIN, HELDOUT):
        raise ValueError(
            f"{key} in {folder}: split is {split!r}; write {TRAIN!r} or {HELDOUT!r}, or leave it out"
        )
    tags = row.get("tags") or ()
    if not isinstance(tags, str | list | tuple):
        raise ValueError(f"{key} in {folder}: tags are {tags!r}; write a list, or words")
    tags = tuple(tags.split()) if isinstance(tags, str) else tuple(map(str, tags))
    load = partial(look.decode, folder / key)
    number = isinstance(caption, int | float) and math.isfinite(caption)
    caption = one_line(str(caption) if number else caption)
    return Example(key, caption, load, group, split, tags, label)


def _metadata(folder: Path) -> list[dict]:
    jsonl, table = folder / "metadata.jsonl", folder / "metadata.csv"
    if jsonl.exists():
        source, rows = jsonl, _jsonl(jsonl)
    elif table.exists():
        source, rows = table, _csv(table)
    else:
        return []
    for line, row in rows:
        if not isinstance(row, dict) or not row.get("file_name"):
            raise ValueError(
                f"{source} line {line}: no file_name; each row names its image, relative to the folder"
            )
    return [{**row, "file_name": Path(row["file_name"]).as_posix()} for _, row in rows]


def _csv(path: Path) -> list[tuple[int, dict]]:
    reader = csv.DictReader(StringIO(text_file.read(path), newline=""))
    try:
        return [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: not CSV ({error}); mend or remove the line") from None


def _jsonl(path: Path) -> list[tuple[int, dict]]:
    rows = []
    for number, line in enumerate(text_file.lines(path), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} line {number}: not JSON ({error.msg}); mend or remove the line"
            ) from None
    return rows


def _sidecar(path: Path) -> str:
    caption = path.with_suffix(".txt")
    return one_line(text_file.read(caption)) if caption.exists() else ""
