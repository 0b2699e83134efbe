"""Models on disk, whoever wrote them: lcm_jax folders, diffusers folders, hub names, single files."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.captions import CaptionEncoder, Clip, caption_encoder
from lcm_jax.data.shards import sha256
from lcm_jax.models import clip_text
from lcm_jax.models.adm import ADMConfig, adm
from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.dit import DiTConfig, dit
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.functional import Net
from lcm_jax.models.latent_statistics import latent_statistics
from lcm_jax.models.spec import GuidanceSpec, ModelSpec, PathSpec, TextSpec, build
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.run_copy import located
from lcm_jax.typing import Params
from lcm_jax.weights import bijection, clip_published, diffusers_folder, diffusers_hub, folder
from lcm_jax.weights.diffusers_names import autoencoder_names
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.single_file import SingleFile
from lcm_jax.weights.tensor_files import Shards, TorchFile, open_tensors

ASSETS = Path(__file__).parent / "assets"
TEXT = ("text_encoder", "text_encoder_2")
PUBLISHED_W = GuidanceSpec(2.0, 14.0)  # of LCMs whose folders do not say (LCM section 5.1)
Spec = ModelSpec | EDMSpec
Place = Callable[[tuple[str, ...], np.ndarray], Any]  # (path, array) -> the leaf that stands for it


def network(spec: Spec, name: str) -> Net:
    """The network of that name at the sizes a spec gives."""
    if name in TEXT:
        return clip_text.clip_text(spec.text.towers[TEXT.index(name)])
    make = {
        "unet": lambda: unet(spec.unet),
        "network": lambda: noise_network(spec.network),
        "autoencoder": lambda: autoencoder(spec.autoencoder),
        "statistics": lambda: latent_statistics(spec.latent_shape, spec.sigma_data),
    }
    return make[name]()


def noise_network(config: ADMConfig | DiTConfig) -> Net:
    """The network of noise levels that a config gives the sizes of."""
    return adm(config) if isinstance(config, ADMConfig) else dit(config)


def image_networks(spec: Spec) -> list[str]:
    """Names of the networks that pictures go through: what draws latents, where there is one, and the autoencoder."""
    if isinstance(spec, EDMSpec):
        return ["network", "autoencoder", "statistics"]
    return [name for name in ("unet", "autoencoder") if getattr(spec, name) is not None]


def text_networks(spec: Spec) -> list[str]:
    """Names of the caption encoders that come with a model."""
    return [] if isinstance(spec, EDMSpec) else list(TEXT[: len(spec.text.towers)])


class Model(ABC):
    """A model that is not read yet: its description, and its networks when they are asked for."""

    spec: Spec
    where: Path

    @abstractmethod
    def tensors(self, name: str) -> Mapping[str, np.ndarray]:
        """The arrays of a network by the names they are stored under, read when asked for."""

    @abstractmethod
    def load(self, name: str, place: Place | None = None) -> Params:
        """A network's parameters, checked against the spec; each leaf is what `place` makes of it, else float32.

        Raises FileNotFoundError or ValueError naming the file and the tensor.
        """

    @abstractmethod
    def files(self, name: str) -> list[Path]:
        """The files a network lies in."""

    @property
    def trained(self) -> dict[str, Any]:
        """The step and the kind of weights ("ema", "params") of the run it was exported from, where it says so."""
        return {k: v for k, v in self.spec.about.get("training", {}).items() if k in ("step", "weights")}

    @property
    def tokenizers(self) -> list[Path]:
        """The folders of the tokenizers that come with the model, one a text encoder."""
        if not text_networks(self.spec):
            return []
        named = [self.where / part for part in diffusers_folder.TOKENIZERS["sdxl"]]
        return [path for path in named[: len(self.spec.text.towers)] if path.is_dir()]

    @cached_property
    def captions(self) -> CaptionEncoder:
        """What the model reads captions through."""
        if not self.spec.text.towers:
            return caption_encoder(self.spec.text)
        name = lambda i: TEXT[i]
        return Clip(self.spec.text, self.tokenizers, lambda i: self.load(name(i)), lambda i: self.tensors(name(i)))

    def fingerprint(self, name: str) -> str:
        """sha256 of the files of a network."""
        return "+".join(sha256(path) for path in self.files(name))


class FlaxFolder(Model):
    """A folder that launch.export wrote, or one shipped with the package."""

    def __init__(self, where: Path):
        self.where = where
        said = folder.describe(where)
        self.spec = (EDMSpec if "network" in said else ModelSpec).from_json(said, str(where / folder.DESCRIPTION))

    def files(self, name: str) -> list[Path]:
        path = self.where / f"{name}.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"{self.where} lacks {path.name}: give a whole folder as launch.export writes it")
        return [path]

    def tensors(self, name: str) -> SafetensorsFile:
        return SafetensorsFile(self.files(name)[0])

    def load(self, name: str, place: Place | None = None) -> Params:
        (path,) = self.files(name)
        return fitting(SafetensorsFile(path), network(self.spec, name).abstract(), str(path), place or on_device)


class DiffusersFolder(Model):
    """A text-to-image pipeline as diffusers saves it."""

    def __init__(self, where: Path, variant: str | None = None):
        self.where, self._variant = where, variant
        self.spec = spec_of(diffusers_folder.describe(where))

    def part(self, name: str) -> Path:
        """The folder of a network."""
        return self.where / diffusers_name(name)

    def files(self, name: str) -> list[Path]:
        return self.tensors(name).paths

    def tensors(self, name: str) -> SafetensorsFile | TorchFile | Shards:
        stem = "model" if name in TEXT else "diffusion_pytorch_model"
        return open_tensors(self.part(name), stem, self._variant)

    def load(self, name: str, place: Place | None = None) -> Params:
        try:
            return fill(self.spec, name, self.tensors(name), place or on_device)
        except ValueError as error:
            raise ValueError(f"{self.part(name)}: {error}") from None


class DiffusersAutoencoder(DiffusersFolder):
    """An autoencoder that diffusers saved by itself, such as sd-vae-ft-ema; `sizes` and `image_size` are its own."""

    def __init__(self, where: Path, sizes: dict[str, Any], image_size: int, variant: str | None = None):
        self.where, self._variant = where, variant
        about = {"from": "an autoencoder of diffusers"}
        self.spec = ModelSpec("autoencoder", "eps", image_size, None, autoencoder_of(sizes), about=about)

    def part(self, name: str) -> Path:
        return self.where


class SingleFileModel(Model):
    """One file in Stable Diffusion's original layout."""

    def __init__(self, where: Path, kind: str | None = None):
        self._file = SingleFile(where)
        self.where = where.parent
        self.spec = spec_of_file(self._file, kind)
        self._path = where

    @property
    def tokenizers(self) -> list[Path]:
        """Those beside the file or, since most come alone, CLIP's as it was published."""
        towers, beside = self.spec.text.towers, super().tokenizers
        if len(beside) == len(towers):
            return beside
        pads = [clip_published.POINT if tower.hidden_act == "gelu" else clip_published.END for tower in towers]
        return clip_published.folders(pads, diffusers_folder.TOKENIZERS["sdxl"][: len(towers)])

    def files(self, name: str) -> list[Path]:
        return [self._path]

    def tensors(self, name: str) -> Mapping[str, np.ndarray]:
        return self._file[diffusers_name(name)]

    def load(self, name: str, place: Place | None = None) -> Params:
        return fill(self.spec, name, self.tensors(name), place or on_device)


def open_model(
    source: str | os.PathLike,
    variant: str | None = None,
    kind: str | None = None,
    empty_caption: str | None = None,
) -> Model:
    """The model of a path, a URL, the name of a shipped one ("emoji-teacher"), or a name on the Hugging Face hub.

    `variant` ("fp16") chooses among the files of a diffusers folder; `kind` ("eps" or "v") is what a single file's
    U-Net predicts, which most do not say: without it SD 2.x is refused, others are taken for eps. `empty_caption`
    ("zeros" or "encoded") is what a model with CLIP takes for the empty caption, in the place of what it says itself.
    Raises FileNotFoundError or ValueError saying what is wrong with it and what can be given.
    """
    found = _open(source, variant, kind)
    if kind is not None and isinstance(found.spec, EDMSpec):
        raise ValueError(f"kind {kind!r} was asked for, but {source} holds a network of noise levels: leave it out")
    if kind is not None and found.spec.kind != kind:
        raise ValueError(f"kind {kind!r} was asked for, but {source} says that it predicts {found.spec.kind!r}")
    if empty_caption is not None:
        found.spec = with_empty_caption(found.spec, empty_caption, source)
    return found


EMPTY_CAPTIONS = ("zeros", "encoded")


def with_empty_caption(spec: Spec, wanted: str, source: str | os.PathLike) -> ModelSpec:
    """The spec with another unconditional condition; ValueError for an unknown one and for models without CLIP."""
    if wanted not in EMPTY_CAPTIONS:
        raise ValueError(f"empty_caption is {wanted!r}; choose one of {', '.join(EMPTY_CAPTIONS)}")
    if not isinstance(spec, ModelSpec) or not spec.text.towers:
        raise ValueError(f"empty_caption {wanted!r} was given, but {source} reads no captions by CLIP: leave it out")
    return replace(spec, text=replace(spec.text, zero_empty=wanted == "zeros"))


def _open(source: str | os.PathLike, variant: str | None, kind: str | None) -> Model:
    source = located(source)
    path = Path(source)
    shipped = {made.parent.name: made.parent for made in sorted(ASSETS.glob(f"*/{folder.DESCRIPTION}"))}
    if path.is_file():
        return SingleFileModel(path, kind)
    if not path.exists() and str(source) in shipped:
        path = shipped[str(source)]
    if (path / folder.DESCRIPTION).is_file():
        return FlaxFolder(path)
    if path.is_dir():
        return _saved_by_diffusers(path, variant)
    if str(source).count("/") != 1 or str(source).startswith((".", "/")):
        names = ", ".join(shipped) or "none are shipped"
        raise FileNotFoundError(f"no model folder {str(source)!r}; give a path, a hub name, or one of: {names}")
    return _saved_by_diffusers(diffusers_hub.resolve(source, variant), variant)


def _saved_by_diffusers(path: Path, variant: str | None) -> Model:
    if (path / diffusers_folder.INDEX).is_file():
        return DiffusersFolder(path, variant)
    if (alone := diffusers_folder.lone_autoencoder(path)) is not None:
        return DiffusersAutoencoder(path, *alone, variant)
    raise FileNotFoundError(
        f"{path} holds neither {folder.DESCRIPTION} nor {diffusers_folder.INDEX} nor an autoencoder's "
        f"{diffusers_folder.CONFIG}: give a folder that launch.export or diffusers' save_pretrained wrote"
    )


def diffusers_name(name: str) -> str:
    """A network's folder in a diffusers pipeline."""
    return "vae" if name == "autoencoder" else name


def fill(spec: ModelSpec, name: str, tensors: Mapping[str, np.ndarray], place: Place) -> Params:
    """A network's parameters from PyTorch's tensors."""
    abstract = network(spec, name).abstract()
    if name in TEXT:
        rename = clip_text.file_names(tensors)
        return bijection.fill(tensors, abstract, place, clip_text.UNUSED_KEYS, rename)
    if name == "autoencoder" and isinstance(spec.autoencoder, AutoencoderConfig):
        return bijection.fill(tensors, abstract, place, rename=autoencoder_names(tensors))
    return bijection.fill(tensors, abstract, place)


def fitting(tensors: Mapping[str, np.ndarray], abstract: Params, source: str, place: Place) -> Params:
    """The tree `abstract` filled from tensors named by its dotted paths; ValueError names the first that differs."""
    wanted = {".".join(path): (path, leaf) for path, leaf in bijection.flatten(abstract).items()}
    shape_of = getattr(tensors, "shape", lambda key: np.shape(tensors[key]))
    for key, (path, leaf) in wanted.items():
        name = "/".join(path)
        if key not in tensors:
            raise ValueError(f"{source} lacks {name}: these weights belong to another network")
        if tuple(shape_of(key)) != leaf.shape:
            raise ValueError(f"{source}: {name} is {tuple(shape_of(key))}, the network wants {leaf.shape}")
    if extra := sorted(set(tensors) - set(wanted)):
        raise ValueError(f"{source} holds {extra[0].replace('.', '/')}, which the network does not have")
    filled = {path: place(path, tensors[key]) for key, (path, _) in wanted.items()}
    return bijection.unflatten(filled)


def on_device(path: tuple[str, ...], array: np.ndarray) -> jax.Array:
    """A float32 array on the default device."""
    return jnp.asarray(array, jnp.float32)


def in_dtype(dtype: str) -> Place:
    """Arrays of that type on the default device, cast before they travel; ValueError for one that is not known."""
    folder.cast({}, dtype)
    return lambda path, array: jnp.asarray(np.asarray(array).astype(jnp.dtype(dtype)))


def on_host(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """A float32 array that stays in the host's memory."""
    return np.asarray(array, np.float32)


def spec_of(told: diffusers_folder.Description) -> ModelSpec:
    """What a diffusers folder says of itself, in our words."""
    towers = []
    for part, config in told.text_encoders.items():
        try:
            towers.append(clip_text.clip_text_config(config))
        except ValueError as error:
            raise ValueError(f"{told.folder / part}: {error}") from None
    sizes = UNetConfig(**told.unet)
    spec = ModelSpec(
        role="consistency" if told.is_lcm else "diffusion",
        kind=told.kind,
        image_size=told.image_size,
        unet=sizes,
        autoencoder=autoencoder_of(told.autoencoder),
        path=PathSpec(**told.path),
        text=TextSpec("clip", min(t.positions for t in towers), tuple(towers), told.zero_empty_caption),
        guidance=PUBLISHED_W if sizes.w_width else None,
        **{k: v for k in ("spacing", "timestep_scaling", "original_steps") if (v := getattr(told, k)) is not None},
        about={"from": f"a {told.family} pipeline of diffusers"},
    )
    # What our own export left there of it says more.
    return build(ModelSpec, {**vars(spec), **told.noted}, str(told.folder / diffusers_folder.INDEX))


def autoencoder_of(sizes: dict[str, Any]) -> AutoencoderConfig | TinyAutoencoderConfig:
    """The autoencoder that diffusers' config describes, read."""
    return (TinyAutoencoderConfig if "encoder_blocks" in sizes else AutoencoderConfig)(**sizes)


SIZES = {"sd1": 512, "sd2": 512, "sdxl": 1024}  # pixels; the SD 2 models that predict v are of 768


def spec_of_file(file: SingleFile, kind: str | None = None) -> ModelSpec:
    """What a single file's tensors tell, in our words; what they do not is what its family was published with.

    `kind` is what the U-Net predicts where the file does not say so; SD 2.x was published in both, the others in eps.
    """
    told = file.description
    if missing := [part for part in ("unet", "vae") if part not in told.components]:
        raise ValueError(f"{file.path} holds no {' and no '.join(missing)}: give a whole model")
    if told.family == "sd2" and not (told.kind or kind):
        raise ValueError(
            f"{file.path} is of SD 2.x and does not say what its U-Net predicts: give --kind v if it is of 768 pixels, "
            "--kind eps if of 512 (config.model.kind of a run)"
        )
    kind = told.kind or kind or "eps"
    towers = tuple(clip_text.ClipTextConfig(**file[part].sizes) for part in TEXT if part in file)
    sizes = UNetConfig(**file["unet"].sizes)
    if not towers:
        raise ValueError(f"{file.path} holds no text encoder: give a whole model")
    return ModelSpec(
        role="consistency" if sizes.w_width else "diffusion",
        kind=kind,
        image_size=768 if told.family == "sd2" and kind == "v" else SIZES[told.family],
        unet=sizes,
        autoencoder=AutoencoderConfig(**file["vae"].sizes),
        path=PathSpec(zero_terminal_snr=told.zero_terminal_snr),
        text=TextSpec("clip", towers[0].positions, towers, zero_empty=told.family == "sdxl"),
        guidance=PUBLISHED_W if sizes.w_width else None,
        about={"from": f"a single file of the family {told.family}"},
    )
