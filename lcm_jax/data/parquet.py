"""Reader of parquet files and of Hugging Face `datasets` folders on disk: an image and a caption column."""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lcm_jax.data import files, images
from lcm_jax.data.example import CAPTION_NAMES, HELDOUT, TRAIN, Example, Found, described, with_tag

IMAGE_NAMES = ("image", "img", "jpg", "png", "webp")
ABOUT_NAMES = ("group", "split", "tags")
LABEL = "label"
HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}
HELD = 2  # row groups of images in memory: rows are read nearly in order, by several threads at once


def examples(
    folder: str | Path | Sequence[str | Path],
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    template: str = "a photo of a {}",
    tag: str | None = None,
    heldout: float = 0.1,
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """Every row of the .parquet and .arrow files below `folder` (or of a file, a glob, or a list), in order.

    Column `image` (or image, img, jpg, ...) holds encoded image files, or structs of their `bytes` or `path`;
    column `caption` (or text, caption) strings, of a list the first, or class labels, whose name goes into
    `template`. Column `label` (by default one of that name) holds class labels, numbers or names; columns `group`,
    `split` and `tags` are read where they are. Keys are FILE/ROW. Captions are
    held, images are read a row group at a time. Where files are named or foldered as splits (train, test, validation),
    the rows of all but train are held out, and no others; with `heldout` 0 none are. A file that cannot be read is left
    out and reported.
    Raises ModuleNotFoundError without pyarrow, FileNotFoundError when there are no files, and ValueError,
    naming the file and its columns, when one is missing or of another type.
    """
    pa = _pyarrow()
    paths = [p for p in files.found(folder, (".parquet", ".arrow")) if not p.name.startswith("cache-")]
    found, damage, groups, classes = [], [], Groups(), ()
    named = files.names(paths)
    splits = own_splits(named) if heldout else {}
    for path, name in zip(paths, named, strict=True):
        try:
            table = Table(path)
            image_column = _image_column(table, image)
            caption_column = _caption_column(table, caption)
            about_columns = [n for n in ABOUT_NAMES if n in table.schema.names and n != caption_column]
            label_column = LABEL if label is None and LABEL in table.schema.names else label
            labels = [] if label_column is None else [_column(table, label_column, (), "label")]
            rows = table.texts(list(dict.fromkeys([caption_column, *about_columns, *labels])))
        except (OSError, pa.ArrowException) as error:
            damage.append(f"{path} cannot be read ({_reason(error)}) and is left out; restore it")
            continue
        words = _class_names(table.schema, caption_column)
        names = _class_names(table.schema, label_column) if labels else None
        classes = classes or tuple(names or ())
        row = 0
        for group, count in enumerate(table.counts):
            for place in range(count):
                load = partial(_load, look, groups, path, image_column, group, place, row)
                about = {n: rows[n][row] for n in about_columns}
                about |= {} if about.get("split") or not splits else {"split": splits[name]}
                if labels:
                    about["label"] = _named(rows[label_column][row], names)
                text = rows[caption_column][row]
                if words is not None:
                    text = template.format(words[text]) if text is not None and 0 <= text < len(words) else ""
                found.append(described(f"{name}/{row}", text, load, about, heldout))
                row += 1
    if not found:
        raise ValueError(f"{folder} holds no rows" + (f"; {damage[0]}" if damage else ""))
    return with_tag(Found(found, damage, classes), tag)


def own_splits(names: Sequence[str]) -> dict[str, str]:
    """The split of each file by `datasets`' names, test/data-00000 or test-00000-of-00001; none where one is alone."""
    words = {name: {part.split("-")[0].lower() for part in name.split("/")} for name in names}
    both = any(TRAIN in said for said in words.values()) and any(said & HELD_OUT for said in words.values())
    return {name: TRAIN if TRAIN in said else HELDOUT for name, said in words.items()} if both else {}


class Table:
    """A parquet or an arrow file: `schema`, and the rows of each of its groups in `counts`; opened for each read."""

    def __init__(self, path: Path):
        self.path = path
        if path.suffix == ".arrow":  # mapped into memory, so all of it is one group that costs nothing
            table = self._mapped()
            self.schema, self.counts = table.schema, [table.num_rows]
        else:
            with self._parquet() as file:
                meta = file.metadata
                self.schema = file.schema_arrow
                self.counts = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]

    def texts(self, columns: list[str]) -> dict[str, list]:
        """Whole columns as Python values."""
        if self.path.suffix == ".arrow":
            return self._mapped().select(columns).to_pydict()
        with self._parquet() as file:
            return file.read(columns).to_pydict()

    def group(self, number: int, column: str) -> Any:
        """One column of one group, as an arrow array."""
        if self.path.suffix == ".arrow":
            return self._mapped()[column]
        with self._parquet() as file:
            return file.read_row_group(number, [column])[column]

    def _parquet(self) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(self.path)

    def _mapped(self) -> Any:
        pa = _pyarrow()
        try:  # `datasets` writes streams; other programs write the file format
            return pa.ipc.open_stream(pa.memory_map(str(self.path))).read_all()
        except pa.ArrowInvalid:
            return pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()


class Groups:
    """The row groups of images that were read last, shared by the examples of all files."""

    def __init__(self):
        self._held: OrderedDict[tuple[Path, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def cell(self, path: Path, column: str, group: int, place: int) -> Any:
        """The value of one row of a group."""
        with self._lock:
            if (path, group) not in self._held:
                while len(self._held) >= HELD:
                    self._held.popitem(last=False)
                self._held[path, group] = Table(path).group(group, column)
            self._held.move_to_end((path, group))
            values = self._held[path, group]
        return values[place].as_py()


def _load(
    look: images.Look, groups: Groups, path: Path, column: str, group: int, place: int, row: int
) -> np.ndarray:
    name = f"image in row {row} of {path}"
    try:
        value = groups.cell(path, column, group, place)
    except (OSError, IndexError, _pyarrow().ArrowException) as error:
        raise ValueError(f"{name} cannot be read ({_reason(error)}); restore the file") from error
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            return look.decode(path.parent / value["path"])
        value = value.get("bytes")
    return look.decode_bytes(value, name)


def _image_column(table: Table, name: str | None) -> str:
    name = _column(table, name, IMAGE_NAMES, "image")
    pa, kind = _pyarrow(), table.schema.field(name).type
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    if not (pa.types.is_binary(inner) or pa.types.is_large_binary(inner)):
        raise ValueError(
            f"image column {name!r} of {table.path} is of type {kind}: it must hold the bytes of image files, or "
            f"structs of bytes and path; {_listed(table)}"
        )
    return name


def _caption_column(table: Table, name: str | None) -> str:
    name = _column(table, name, CAPTION_NAMES, "caption")
    pa, kind = _pyarrow(), table.schema.field(name).type
    if pa.types.is_integer(kind):
        if _class_names(table.schema, name) is None:
            raise ValueError(f"caption column {name!r} of {table.path} holds numbers without names; {_listed(table)}")
        return name
    inner = kind.value_type if pa.types.is_list(kind) or pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(inner) or pa.types.is_large_string(inner)):
        raise ValueError(f"caption column {name!r} of {table.path} is of type {kind}, not text; {_listed(table)}")
    return name


def _column(table: Table, name: str | None, usual: Sequence[str], what: str) -> str:
    known = [n for n in ((name,) if name is not None else usual) if n in table.schema.names]
    if not known:
        wanted = repr(name) if name is not None else " or ".join(usual)
        raise ValueError(f"{table.path} has no {what} column {wanted}; {_listed(table)}: name one as {what}=COLUMN")
    return known[0]


def _listed(table: Table) -> str:
    return "its columns are " + ", ".join(f"{f.name} ({str(f.type)[:40]})" for f in table.schema)


def _class_names(schema: Any, column: str) -> list[str] | None:
    """The names of a column of class labels, which `datasets` keeps beside the schema; None for other columns."""
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = about.get("info", {}).get("features", {}).get(column, {})
    names = feature.get("names") if isinstance(feature, dict) else None
    return names if _pyarrow().types.is_integer(schema.field(column).type) else None


def _named(value: Any, names: Sequence[str] | None) -> Any:
    """A label by its name where the column has names; a number that has none is no label."""
    if names is None or not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _pyarrow() -> ModuleType:
    try:
        import pyarrow
    except ImportError:
        raise ModuleNotFoundError("the parquet reader needs pyarrow: pip install pyarrow") from None
    return pyarrow
