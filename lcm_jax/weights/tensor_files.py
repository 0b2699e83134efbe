"""Opens the weights that diffusers or transformers saved in a folder, in whichever files, array by array."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from lcm_jax.weights.bijection import some
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.torch_pickle import read_torch

PICKLED_STEM = {"model": "pytorch_model"}  # transformers named its older files otherwise


class TorchFile(Mapping):  # of no stated types: to check them would be to read it
    """A PyTorch checkpoint as a mapping from key to array; it can only be read whole, and let go of again.

    Raises FileNotFoundError for no file, ValueError for one that is damaged or no flat dict of tensors.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._tensors: dict[str, np.ndarray] | None = None
        self._shapes = {key: array.shape for key, array in self._read().items()}

    def _read(self) -> dict[str, np.ndarray]:
        if self._tensors is None:
            content = read_torch(self.path)
            if not isinstance(content, dict) or not all(isinstance(v, np.ndarray) for v in content.values()):
                raise ValueError(f"{self.path} holds more than a dict of tensors: save the network's state_dict alone")
            self._tensors = content
        return self._tensors

    def release(self) -> None:
        """Lets the arrays go; they are read again when asked for."""
        self._tensors = None

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._shapes:
            raise KeyError(f"{self.path} holds no tensor {key!r}")
        return self._read()[key]

    def __contains__(self, key: object) -> bool:
        return key in self._shapes  # a mapping's own way would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    @property
    def paths(self) -> list[Path]:
        """The files that are read: this one."""
        return [self.path]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one array."""
        return self._shapes[key]


class Shards(Mapping[str, np.ndarray]):
    """Several files as one mapping, in their order; no two files that are read whole are held at once."""

    def __init__(self, files: Mapping[str, SafetensorsFile | TorchFile], home: Mapping[str, str]):
        self._files, self._home = files, home
        self._last: TorchFile | None = None

    def __getitem__(self, key: str) -> np.ndarray:
        file = self._file(key)
        if isinstance(file, TorchFile):
            if self._last is not None and self._last is not file:
                self._last.release()
            self._last = file
        return file[key]

    def __contains__(self, key: object) -> bool:
        return key in self._home

    def __iter__(self) -> Iterator[str]:
        return (key for name, file in self._files.items() for key in file if self._home.get(key) == name)

    def __len__(self) -> int:
        return len(self._home)

    @property
    def paths(self) -> list[Path]:
        """The files that are read, in their order."""
        return [file.path for file in self._files.values()]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one array."""
        return self._file(key).shape(key)

    def _file(self, key: str) -> SafetensorsFile | TorchFile:
        if key not in self._home:
            raise KeyError(f"{', '.join(str(file.path) for file in self._files.values())} hold no tensor {key!r}")
        return self._files[self._home[key]]


def open_tensors(
    folder: str | os.PathLike, stem: str = "diffusion_pytorch_model", variant: str | None = None
) -> SafetensorsFile | TorchFile | Shards:
    """The arrays of STEM.safetensors, or of the shards its index names, by PyTorch's names; read when asked for.

    `variant` ("fp16") means STEM.VARIANT.safetensors and takes no other; transformers' stem is "model". Where
    there are no safetensors, older STEM.bin files are read, each whole: nothing pickled in them is called.
    All that is returned has a method shape(key) and the `paths` of the files read. Raises FileNotFoundError with the
    names looked for or the shard that is missing, ValueError for a damaged file and for a tensor that the index
    promises in vain.
    """
    folder, tag = Path(folder), f".{variant}" if variant else ""
    pickled = PICKLED_STEM.get(stem, stem)
    ways: dict[str, Callable[[Path], SafetensorsFile | TorchFile | Shards]] = {
        f"{stem}{tag}.safetensors": SafetensorsFile,
        f"{stem}.safetensors.index{tag}.json": lambda path: _shards(path, SafetensorsFile),
        f"{pickled}{tag}.bin": TorchFile,
        f"{pickled}.bin.index{tag}.json": lambda path: _shards(path, _glanced_at),
    }
    for name, open_file in ways.items():
        if (folder / name).is_file():
            return open_file(folder / name)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}, where {', '.join(ways)} would be: download the whole model")
    here = sorted(path.name for path in folder.iterdir())
    named = re.compile(rf"(?:{stem}|{pickled})(?:-\d+-of-\d+)?\.(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin)")
    there = sorted({match[1] for name in here if (match := named.fullmatch(name))})
    choice = "download them"
    if there:
        choice = f"--variant {there[0]} reads what is there (config.model.variant of a run)"
    elif variant is None:
        choice += "; those of a model that was published in half precision alone are had by --variant fp16"
    raise FileNotFoundError(f"{folder} holds none of {', '.join(ways)}, but {some(here) or 'nothing'}: {choice}")


def _shards(index: Path, open_file: Callable[[Path], SafetensorsFile | TorchFile]) -> Shards:
    try:
        home = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(home.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{index} is no index of shards ({error!r}): download it again") from error
    if odd := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index} names the shard {odd[0]!r}, no plain file name: download it again")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise FileNotFoundError(f"{index} names {some(missing)}, missing from that folder: download it")
    files = {name: open_file(index.parent / name) for name in names}
    held = {name: set(file) for name, file in files.items()}
    if broken := [f"{key} ({name})" for key, name in home.items() if key not in held[name]]:
        raise ValueError(f"{index} promises tensors that their shards lack: {some(broken)}; download both again")
    return Shards(files, home)


def _glanced_at(path: Path) -> TorchFile:
    """The file with its names and shapes known and its arrays let go."""
    file = TorchFile(path)
    file.release()
    return file
