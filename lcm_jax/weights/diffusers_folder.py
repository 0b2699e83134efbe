"""Describes what diffusers saves: a pipeline, a folder a component named in model_index.json; an autoencoder alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lcm_jax.weights.bijection import some
from lcm_jax.weights.diffusers_config import autoencoder_factor, autoencoder_sizes, unet_sizes
from lcm_jax.weights.diffusers_scheduler import scheduler_path
from lcm_jax.weights.json_file import read_object

INDEX = "model_index.json"
CONFIG = "config.json"  # of one component
NOTES = "_lcm_jax"  # a key of the index: diffusers passes over those that begin so
NOTED = ("guidance", "steps", "about")  # what an index has no other place for
FAMILIES = {
    "StableDiffusionPipeline": "sd",
    "LatentConsistencyModelPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
}
TEXT_ENCODERS = {"sd": ("text_encoder",), "sdxl": ("text_encoder", "text_encoder_2")}
TOKENIZERS = {"sd": ("tokenizer",), "sdxl": ("tokenizer", "tokenizer_2")}
_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP[1:],
}
_LIBRARIES = ("diffusers", "transformers")
_SIZE_IDS = 6  # original size, crop and target size, two numbers each (SDXL section 2.2)


@dataclass(frozen=True)
class Description:
    """A pipeline without its weights; the dicts hold fields of our own dataclasses."""

    folder: Path
    family: str  # "sd" has one text encoder; "sdxl" two, pooled text and size ids
    unet: dict[str, Any]  # models.unet.UNetConfig
    autoencoder: dict[str, Any]  # models.autoencoder.AutoencoderConfig; with "encoder_blocks" TinyAutoencoderConfig
    text_encoders: dict[str, dict[str, Any]]  # component -> its config.json as it is
    tokenizers: dict[str, Path]  # component -> its folder
    path: dict[str, Any]  # models.spec.PathSpec
    kind: str  # "eps", "v" or "x0"
    spacing: str | None  # of the times its own sampler takes; None leaves it to the sampler
    image_size: int
    is_lcm: bool  # takes w, or comes with the LCM scheduler
    original_steps: int | None  # of the LCM scheduler
    timestep_scaling: float | None  # of the LCM scheduler
    zero_empty_caption: bool  # SDXL base: the empty caption's context and pooled text are zeros
    noted: dict[str, Any]  # what our own export left in the index: fields of models.spec.ModelSpec


def describe(folder: str | os.PathLike) -> Description:
    """What a pipeline folder says of itself; no weights are read.

    Raises FileNotFoundError for a missing file or component, and ValueError for what is not supported or does
    not fit together, naming the file, the key and what is supported.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file():
        here = some(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else ""
        holds = f"it has {here}" if here else "nothing is there"
        raise FileNotFoundError(f"{folder} holds no {INDEX} ({holds}): give a folder that save_pretrained wrote")
    index = _json(folder / INDEX)
    if not isinstance(name := index.get("_class_name"), str) or name not in FAMILIES:
        raise ValueError(f"{folder / INDEX} is of a {name}; supported: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    places = {
        part: _place(folder, index, part) for part in ("unet", "vae", *TEXT_ENCODERS[family], *TOKENIZERS[family])
    }
    unet_json, vae_json = (_json(places[part] / CONFIG) for part in ("unet", "vae"))
    unet = unet_sizes(unet_json, f"{places['unet']}/{CONFIG}")
    vae_json["_class_name"] = index["vae"][1]  # the index decides, as below
    autoencoder = autoencoder_sizes(vae_json, f"{places['vae']}/{CONFIG}")
    text_encoders = {
        part: {**_json(places[part] / CONFIG), "architectures": [index[part][1]]} for part in TEXT_ENCODERS[family]
    }
    _check_fit(folder, family, unet, autoencoder, text_encoders)

    file = _place(folder, index, "scheduler") / "scheduler_config.json"
    # The index names the class that is made of the file, whichever class wrote the file.
    scheduler = {**_json(file), "_class_name": index["scheduler"][1]}
    trained = scheduler_path(scheduler, str(file))
    return Description(
        folder=folder,
        family=family,
        unet=unet,
        autoencoder=autoencoder,
        text_encoders=text_encoders,
        tokenizers={part: places[part] for part in TOKENIZERS[family]},
        **trained,
        image_size=_image_size(unet_json, vae_json, autoencoder, folder),
        is_lcm=unet["w_width"] is not None or trained["original_steps"] is not None,
        zero_empty_caption=family == "sdxl" and bool(index.get("force_zeros_for_empty_prompt", True)),
        noted=_noted(index, folder / INDEX),
    )


def lone_autoencoder(folder: str | os.PathLike) -> tuple[dict[str, Any], int] | None:
    """(Sizes as Description has them, pixels a side of its pictures) of an autoencoder that was saved by itself.

    None where the folder holds none. Raises ValueError as `describe` does.
    """
    folder = Path(folder)
    config = _json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    if config.get("_class_name") not in _CLASSES["vae"]:
        return None
    sizes = autoencoder_sizes(config, f"{folder}/{CONFIG}")
    return sizes, _image_size({}, config, sizes, folder)


def _noted(index: Mapping[str, Any], file: Path) -> dict[str, Any]:
    notes = index.get(NOTES, {})
    if not isinstance(notes, dict):
        raise ValueError(f"{file} has {NOTES} = {notes!r}, no JSON object: remove it or export the model again")
    return {key: notes[key] for key in NOTED if key in notes}


def _place(folder: Path, index: Mapping[str, Any], part: str) -> Path:
    """The folder of a component that the index names, of a class that is supported."""
    entry = index.get(part)
    if not isinstance(entry, list) or len(entry) != 2 or not entry[1]:
        raise ValueError(f"{folder / INDEX} names no {part} (it says {entry!r}): give a whole pipeline")
    if entry[0] not in _LIBRARIES:
        own = "has code of its own" if part in _CLASSES else "is of a library that is not read"
        raise ValueError(f"{folder / INDEX}: {part} {own} ({entry[0]}); supported: {', '.join(_LIBRARIES)}")
    if part in _CLASSES and entry[1] not in _CLASSES[part]:
        raise ValueError(f"{folder / INDEX}: {part} is a {entry[1]}; supported: {', '.join(_CLASSES[part])}")
    if not (folder / part).is_dir():
        raise FileNotFoundError(f"{folder} has no folder {part}, which {INDEX} names: download it, too")
    return folder / part


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: download it, too")
    return read_object(path, "download it again")


def _check_fit(folder: Path, family: str, unet: dict, autoencoder: dict, text_encoders: dict[str, dict]) -> None:
    """Raises ValueError where the U-Net wants other latents or captions than the components beside it make."""
    made, takes, gives = (autoencoder["latent_channels"], unet["latent_channels"], unet["out_channels"])
    if takes != made or gives is not None:
        raise ValueError(
            f"{folder}/unet turns {takes} channels into {gives or takes}, {folder}/vae makes {made}: networks that "
            "see more than the latent (inpainting, upscaling, editing) or predict a variance are not supported"
        )
    if shift := autoencoder.get("shift"):
        raise ValueError(
            f"{folder}/vae has shift_factor = {shift}, which diffusers' {INDEX} of this kind leaves out: supported is 0"
        )
    width = sum(config.get("hidden_size", 512) for config in text_encoders.values())
    if unet["context_width"] != width:
        raise ValueError(
            f"{folder}/unet takes captions {unet['context_width']} wide, {' + '.join(text_encoders)} make {width}"
        )
    if family == "sd" and unet["added_width"]:
        raise ValueError(f"{folder}/unet has addition_embed_type = 'text_time', {INDEX} is not of an SDXL pipeline")
    if family == "sdxl":
        pooled = text_encoders["text_encoder_2"].get("projection_dim", 512)
        if unet["added_width"] != (added := pooled + _SIZE_IDS * unet["added_time_width"]):
            raise ValueError(
                f"{folder}/unet takes {unet['added_width']} added numbers, pooled text and size ids are {added}"
            )


def _image_size(unet: dict[str, Any], vae: dict[str, Any], autoencoder: dict[str, Any], folder: Path) -> int:
    """Pixels a side: the U-Net's sample_size times the autoencoder's factor, or the autoencoder's own."""
    factor = autoencoder_factor(autoencoder)
    latent = unet.get("sample_size")
    size = vae.get("sample_size") if latent is None else latent
    sides = size if isinstance(size, list) and size else [size]
    if type(sides[0]) is not int or any(side != sides[0] for side in sides):
        raise ValueError(f"{folder} is of images of sample_size {size!r}; supported: one whole number, for squares")
    return sides[0] if latent is None else sides[0] * factor
