"""A Stable Diffusion model as one file in the original layout, for ComfyUI and others; a card and tokenizers beside."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lcm_jax.export.flax_folder import SLACK
from lcm_jax.export.network_file import TorchTensors, Trees, shapes_of, size
from lcm_jax.export.new_folder import CARD, check_free, check_space, new_folder
from lcm_jax.export.torch_card import single_file_card
from lcm_jax.typing import Params
from lcm_jax.weights import folder, single_file
from lcm_jax.weights.diffusers_folder import TOKENIZERS
from lcm_jax.weights.ldm_family import FAMILIES

PARTS = {"unet": "unet", "vae": "autoencoder", "text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2"}
PATH = {"schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "T": 1000}  # all that readers know
# What shapes do not tell of a network, and everyone takes for granted.
SILENT = {
    "unet": {"norm_groups": 32, "added_time_width": 256},
    "vae": {"norm_groups": 32, "shift": 0.0},
    "text": {"eps": 1e-5},
}
KINDS = {"eps": "epsilon", "v": "v"}
ARCHITECTURES = {"sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base"}


def write(
    out: str | os.PathLike,
    description: Mapping[str, Any],
    networks: Trees,
    tokenizers: Sequence[Path] = (),
    dtype: str = "float16",
    overwrite: bool = False,
) -> Path:
    """Writes a folder with NAME.safetensors, called as the folder, its card and tokenizers; arguments are those of
    export.diffusers_folder.

    Raises ValueError for what a file of that layout cannot say of a model, and as export.diffusers_folder does.
    """
    out = Path(os.path.abspath(out))
    folder.cast({}, dtype)  # refuses an unknown one
    kind, zero = description["kind"], description["path"]["zero_terminal_snr"]
    shapes = shapes_of(networks)
    family = family_of(description)
    parts = {part: ours for part, ours in PARTS.items() if part in FAMILIES[family]}
    if missing := [ours for ours in parts.values() if ours not in shapes]:
        raise ValueError(f"a single file of {family} holds {', '.join(parts)}, this model has no {missing[0]}")
    held = _one_at_a_time(networks)
    tensors = {part: TorchTensors(shapes[ours], lambda ours=ours: held(ours), dtype) for part, ours in parts.items()}
    check_said(description, family, tensors)
    check_free(out, overwrite)
    check_space(out.parent, sum(size(shapes[ours], dtype) for ours in parts.values()) + SLACK)
    notes = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": ARCHITECTURES[family],
        "modelspec.title": out.name,
        "modelspec.prediction_type": KINDS[kind],
        "modelspec.resolution": f"{description['image_size']}x{description['image_size']}",
    }
    # Marks by which ComfyUI knows such models.
    marks = {name: np.zeros(0, dtype) for name, there in (("v_pred", kind == "v"), ("ztsnr", zero)) if there}
    file = f"{out.name}.safetensors"
    with new_folder(out, overwrite) as scratch:
        single_file.write(scratch / file, tensors, family, marks, notes)
        for name, tokenizer in zip(TOKENIZERS["sdxl"], tokenizers, strict=False):
            shutil.copytree(tokenizer, scratch / name)
        used = {ours: shapes[ours] for ours in parts.values()}
        folder.write_text(scratch / CARD, single_file_card(out, description, used, dtype, file, family))
    return out


def family_of(description: Mapping[str, Any]) -> str:
    """The family of single files whose U-Net is like this one; ValueError for a model that has none."""
    if description["unet"] is None:
        raise ValueError("this model is an autoencoder alone: export it as flax")
    if description["unet"]["added_width"]:
        return "sdxl"
    return "sd2" if description["unet"]["linear_projection"] else "sd1"


def check_said(description: Mapping[str, Any], family: str, tensors: Mapping[str, TorchTensors]) -> None:
    """Raises ValueError where readers would take the model for another, whose file is the same."""
    told = {"unet": description["unet"], "vae": description["autoencoder"]}
    told |= dict(zip(("text_encoder", "text_encoder_2"), description["text"]["towers"], strict=False))
    if description["kind"] not in KINDS:
        raise ValueError(f"the model predicts {description['kind']}: readers of single files know eps and v alone")
    for key, value in PATH.items():
        if (found := description["path"][key]) != value:
            raise ValueError(f"path.{key} is {found}: readers of single files take it for {value}")
    for part, ours in tensors.items():
        if "encoder_blocks" in told[part] or told[part].get("patch", 1) != 1:
            raise ValueError("a single file holds an autoencoder like Stable Diffusion's: this one is of another kind")
        found = FAMILIES[family][part].sizes({key: ours.shape(key) for key in ours})
        found.pop("force_upcast", None)  # whatever readers take, the same picture is meant
        for key, value in {**found, **SILENT.get(part, SILENT["text"])}.items():
            if _plain(told[part][key]) != _plain(value):
                raise ValueError(
                    f"{part}: {key} is {told[part][key]}, which its tensors do not show: readers of single files "
                    f"of {family} take it for {value}"
                )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _one_at_a_time(networks: Trees) -> Callable[[str], Params]:
    """Networks by name, of which the last one asked for is kept."""
    kept: dict[str, Params] = {}

    def held(name: str) -> Params:
        if name not in kept:
            kept.clear()
            kept[name] = networks[name]
        return kept[name]

    return held
