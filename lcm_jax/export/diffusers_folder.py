"""A text-to-image model as the folder of a diffusers pipeline: configs, weights under PyTorch's names, tokenizers."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lcm_jax.export.flax_folder import SLACK
from lcm_jax.export.network_file import Trees, shapes_of, size, write_torch
from lcm_jax.export.new_folder import CARD, check_free, check_space, new_folder
from lcm_jax.export.torch_card import pipeline_card
from lcm_jax.weights import folder
from lcm_jax.weights.diffusers_config import autoencoder_config, autoencoder_factor, text_encoder_config, unet_config
from lcm_jax.weights.diffusers_folder import INDEX, NOTED, NOTES, TEXT_ENCODERS, TOKENIZERS
from lcm_jax.weights.diffusers_scheduler import ddim_scheduler_config, lcm_scheduler_config

VERSION = "0.22.0"  # of diffusers, the first with all the classes that are named; its AutoPipelines ask for one
_NONE = [None, None]  # how an index says that a component is not there
_TOKENIZER_CONFIG = "tokenizer_config.json"


class _Part(NamedTuple):
    library: str
    config: dict[str, Any]
    network: str | None = None  # ours, whose weights belong beside the config


def write(
    out: str | os.PathLike,
    description: Mapping[str, Any],
    networks: Trees,
    tokenizers: Sequence[Path] = (),
    dtype: str = "float32",
    overwrite: bool = False,
) -> Path:
    """Writes what DiffusionPipeline.from_pretrained loads; `description` is models.spec.ModelSpec.to_json's.

    `networks` are "unet", "autoencoder" and, of captions read by CLIP, "text_encoder"[, "text_encoder_2"], read one
    at a time; captions of another encoder leave the pipeline without one. The folder appears whole or not at all.
    Raises ValueError for a model that diffusers has no classes for and for weights beyond `dtype`, FileExistsError
    and OSError as export.flax_folder does.
    """
    out = Path(os.path.abspath(out))
    folder.cast({}, dtype)  # refuses an unknown one
    parts, towers = _parts(description, dtype), len(description["text"]["towers"])
    if len(tokenizers) != towers:
        raise FileNotFoundError(f"{towers} text encoders need as many tokenizers, found {len(tokenizers)}")
    wanted = [part.network for part in parts.values() if part.network]
    if missing := [name for name in wanted if name not in shapes_of(networks)]:
        raise ValueError(f"this model's pipeline needs the weights of {', '.join(wanted)}, but has no {missing[0]}")
    check_free(out, overwrite)
    shapes = {name: shapes_of(networks)[name] for name in wanted}
    check_space(out.parent, sum(size(tree, dtype) for tree in shapes.values()) + SLACK)
    with new_folder(out, overwrite) as scratch:
        for name, part in parts.items():
            (scratch / name).mkdir()
            file = "scheduler_config.json" if name == "scheduler" else "config.json"
            _write_json(scratch / name / file, part.config)
            if part.network:
                stem = "model" if part.library == "transformers" else "diffusion_pytorch_model"
                write_torch(scratch / name / f"{stem}.safetensors", networks[part.network], dtype)
        for name, tokenizer in zip(TOKENIZERS["sdxl"], tokenizers, strict=False):
            _copy_tokenizer(tokenizer, scratch / name, description["text"]["length"])
        index = _index(description, parts)
        folder.write_text(scratch / CARD, pipeline_card(out, description, shapes, dtype, index["_class_name"]))
        _write_json(scratch / INDEX, index)
    return out


def pipeline_class(description: Mapping[str, Any]) -> str:
    """diffusers' class for a model."""
    sizes = description["unet"]
    if sizes["added_width"]:
        return "StableDiffusionXLPipeline"
    told_w = description["role"] == "consistency" and sizes["w_width"]
    return "LatentConsistencyModelPipeline" if told_w else "StableDiffusionPipeline"


def _parts(description: Mapping[str, Any], dtype: str) -> dict[str, _Part]:
    """The components by diffusers' names; ValueError for what cannot be expressed there."""
    sizes, vae, path, kind = (description[key] for key in ("unet", "autoencoder", "path", "kind"))
    if sizes is None:
        raise ValueError("this model is an autoencoder alone, no pipeline: export it as flax")
    if vae.get("shift"):
        raise ValueError(f"autoencoder.shift is {vae['shift']:g}: diffusers' Stable Diffusion leaves shifts out")
    side = description["image_size"]
    if description["role"] == "consistency":
        boundary = (description["original_steps"], description["timestep_scaling"])
        scheduler = lcm_scheduler_config(path, kind, *boundary, description["spacing"])
    else:
        scheduler = ddim_scheduler_config(path, kind, description["spacing"])
    parts = {
        "unet": _Part("diffusers", unet_config(sizes, side // autoencoder_factor(vae)), "unet"),
        "vae": _Part("diffusers", autoencoder_config(vae, side), "autoencoder"),
        "scheduler": _Part("diffusers", scheduler),
    }
    for name, tower in zip(TEXT_ENCODERS["sdxl"], description["text"]["towers"], strict=False):
        parts[name] = _Part("transformers", text_encoder_config(tower, dtype), name)
    return parts


def _index(description: Mapping[str, Any], parts: Mapping[str, _Part]) -> dict[str, Any]:
    """The content of model_index.json, with what only we want to read back under a key of our own."""
    name, towers = pipeline_class(description), len(description["text"]["towers"])
    xl = name == "StableDiffusionXLPipeline"
    family = "sdxl" if xl else "sd"
    index: dict[str, Any] = {"_class_name": name, "_diffusers_version": VERSION}
    index[NOTES] = {key: description[key] for key in NOTED}
    for part in ("unet", "vae", "scheduler", *TEXT_ENCODERS[family]):
        found = parts.get(part)
        index[part] = _NONE if found is None else [found.library, _class_of(found.config)]
    for number, part in enumerate(TOKENIZERS[family]):
        index[part] = ["transformers", "CLIPTokenizer"] if number < towers else _NONE
    index |= {"feature_extractor": _NONE, "image_encoder": _NONE}
    if xl:
        return index | {"force_zeros_for_empty_prompt": description["text"]["zero_empty"]}
    return index | {"safety_checker": _NONE, "requires_safety_checker": False}


def _class_of(config: Mapping[str, Any]) -> str:
    return config["_class_name"] if "_class_name" in config else config["architectures"][0]


def _copy_tokenizer(source: Path, target: Path, length: int) -> None:
    """A tokenizer that pads to the model's own length, which an encoder would otherwise be asked beyond."""
    shutil.copytree(source, target)
    file = target / _TOKENIZER_CONFIG
    settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if settings.get("model_max_length") != length:
        _write_json(file, {**settings, "model_max_length": length})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    folder.write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
