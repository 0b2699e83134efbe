"""Reads and writes whole Stable Diffusion models in one file of the original layout (CompVis, StabilityAI).

Three families: "sd1" (SD 1.x), "sd2" (SD 2.x), "sdxl" (SDXL base). Components have the names and keys of diffusers'
folders: unet, vae, text_encoder and, of SDXL, text_encoder_2. What the layout does not say, or says otherwise:

- U-Nets that predict eps and v have the same tensors; a few files say which they are (`Description.kind`).
- OpenCLIP's encoder has 24 layers in SD 2.x, whose last is never used: like its text projection it is no part of
  text_encoder, as in diffusers' folders, and is passed over. Written without them, a file is read as well.
- A consistency model's map of w is kept as model.diffusion_model.time_embedding.cond_proj.weight.
- Averages (model_ema) are passed over, as by others' readers.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lcm_jax.weights.bijection import some
from lcm_jax.weights.ldm_family import FAMILIES, detect, is_ignored, under
from lcm_jax.weights.ldm_layout import Entry, must_match
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.safetensors_stream import write_stream


class Component(Mapping[str, np.ndarray]):
    """Tensors of a file under diffusers' or transformers' keys; one is read when it is asked for.

    `sizes` are the fields of UNetConfig, AutoencoderConfig or ClipTextConfig that the tensors tell.
    """

    def __init__(self, file: SafetensorsFile, prefix: str, entries: Sequence[Entry], sizes: dict[str, Any]):
        self.sizes = sizes
        self._file, self._prefix = file, prefix
        stored = sorted(entries)  # in the order of the file
        self._places = {key: (entry, part) for entry in stored for part, key in enumerate(entry.ours)}

    def __getitem__(self, key: str) -> np.ndarray:
        entry, part = self._place(key)
        return entry.read(self._file[self._prefix + entry.original], part)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one array, without reading it."""
        entry, part = self._place(key)
        return entry.shapes(self._file.shape(self._prefix + entry.original))[part]

    def _place(self, key: str) -> tuple[Entry, int]:
        if key not in self._places:
            raise KeyError(f"{self._file.path} holds no tensor {key!r} under {self._prefix}*")
        return self._places[key]


class SingleFile(Mapping[str, Component]):
    """The components of a model by name; numbers and their types are as stored.

    `description` is what `detect` says. Raises FileNotFoundError for no file; ValueError, in one line, for one that is
    truncated or of another kind, or that has a network with tensors missing or too many.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._file = SafetensorsFile(path)
        self.metadata = self._file.metadata
        shapes = {key: self._file.shape(key) for key in self._file}
        try:
            self.description = detect(shapes, self.metadata)
            family = self.description.family
            shapes = {key: shape for key, shape in shapes.items() if not is_ignored(key, family)}
            self._components = {name: self._component(name, shapes) for name in self.description.components}
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def __getitem__(self, name: str) -> Component:
        if name not in self._components:
            raise KeyError(f"{self.path} holds no {name}; it has {', '.join(self._components)}")
        return self._components[name]

    def __contains__(self, name: object) -> bool:
        return name in self._components

    def __iter__(self) -> Iterator[str]:
        return iter(self._components)

    def __len__(self) -> int:
        return len(self._components)

    def _component(self, name: str, shapes: dict[str, tuple[int, ...]]) -> Component:
        part = FAMILIES[self.description.family][name]
        own = under(part.prefix, shapes)
        sizes = part.sizes(own)
        entries = part.entries(sizes, own)
        must_match(own, [entry.original for entry in entries], name)
        for entry in entries:
            entry.shapes(own[entry.original])
        return Component(self._file, part.prefix, entries, sizes)


def write(
    path: str | os.PathLike,
    components: Mapping[str, Mapping[str, Any]],
    family: str,
    unused: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes {"unet": {diffusers' key: array in PyTorch's layout}, ...} as one file; every bit is kept.

    `unused` are tensors that readers pass over, by their names in the file; metadata {"modelspec.prediction_type": "v"
    or "epsilon"} tells readers what the U-Net predicts. Tensors are read one at a time, in the order of the file:
    components with methods shape(key) and dtype(key) need not hold them.
    Raises ValueError for an unknown family or component, and for tensors that are missing, too many or would not
    come back.
    """
    parts = FAMILIES.get(family)
    if parts is None:
        raise ValueError(f"unknown family {family!r}; choose one of {', '.join(FAMILIES)}")
    places: dict[str, tuple[Entry, Mapping[str, Any]]] = {}
    for name, ours in components.items():
        if name not in parts:
            raise ValueError(f"{family} has no component {name!r}; it has {', '.join(parts)}")
        prefix, sizes, entries = parts[name]
        wanted = entries(sizes({key: _shape(ours, key) for key in ours}), ())
        must_match(ours, [key for entry in wanted for key in entry.ours], name)
        places |= {prefix + entry.original: (entry, ours) for entry in wanted}
    if lost := sorted(key for key in places if is_ignored(key, family)):
        raise ValueError(f"readers of {family} pass over {some(lost)}: leave these out")
    if alien := sorted(key for key in unused or {} if not is_ignored(key, family)):
        raise ValueError(f"unused tensors cannot be named {some(alien)}: readers would not pass over them")
    places |= {key: (Entry(key, (key,)), unused) for key in unused or {}}
    layout = {key: _described(*place) for key, place in places.items()}
    if (found := detect({key: leaf.shape for key, leaf in layout.items()}).family) != family:
        raise ValueError(f"this U-Net is one of {found}, not of {family}: give the family it has")

    def read(key: str) -> np.ndarray:
        entry, ours = places[key]
        return entry.write(ours)

    write_stream(path, layout, read, {"format": "pt", **(metadata or {})})


class _Described(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype


def _described(entry: Entry, ours: Mapping[str, Any]) -> _Described:
    """What Entry.write will give; ValueError as it raises."""
    kinds = {(_shape(ours, key), _dtype(ours, key)) for key in entry.ours}
    if len(kinds) > 1:
        raise ValueError(f"{', '.join(entry.ours)} differ in shape or type: they are one tensor in the file")
    ((shape, dtype),) = kinds
    return _Described(entry.form.join([np.broadcast_to(np.int8(0), shape)] * len(entry.ours)).shape, dtype)


def _shape(tensors: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Without reading the tensor where that can be."""
    shape = getattr(tensors, "shape", None)
    return tuple(shape(key)) if shape else np.shape(tensors[key])


def _dtype(tensors: Mapping[str, Any], key: str) -> np.dtype:
    """Without reading the tensor where that can be."""
    dtype = getattr(tensors, "dtype", None)
    return dtype(key) if dtype else np.asarray(tensors[key]).dtype
