"""The families of original Stable Diffusion files: what is where in them, and which one a file belongs to."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lcm_jax.weights.bijection import some
from lcm_jax.weights.ldm_autoencoder import autoencoder_entries, autoencoder_sizes
from lcm_jax.weights.ldm_layout import Entry, Shapes
from lcm_jax.weights.ldm_text import clip_entries, clip_sizes, openclip_entries, openclip_sizes
from lcm_jax.weights.ldm_unet import unet_entries, unet_sizes


class Part(NamedTuple):
    """Where a component is in a file, and how its sizes and the names of its tensors (less the prefix) are found."""

    prefix: str
    sizes: Callable[[Shapes], dict[str, Any]]
    entries: Callable[[Mapping[str, Any], Collection[str]], list[Entry]]


def _family(scale: float, **text: Part) -> dict[str, Part]:
    return {
        "unet": Part("model.diffusion_model.", unet_sizes, lambda sizes, _: unet_entries(sizes)),
        "vae": Part(
            "first_stage_model.",
            lambda shapes: {**autoencoder_sizes(shapes), "scale": scale, "force_upcast": True},
            lambda sizes, _: autoencoder_entries(sizes),
        ),
        **text,
    }


FAMILIES = {
    "sd1": _family(0.18215, text_encoder=Part("cond_stage_model.transformer.", clip_sizes, clip_entries)),
    "sd2": _family(0.18215, text_encoder=Part("cond_stage_model.model.", openclip_sizes, openclip_entries)),
    "sdxl": _family(
        0.13025,
        text_encoder=Part("conditioner.embedders.0.transformer.", clip_sizes, clip_entries),
        text_encoder_2=Part("conditioner.embedders.1.model.", openclip_sizes, openclip_entries),
    ),
}

# Whole names of tensors that no network has: averages, tables of the noise schedule, losses, buffers, marks.
IGNORED = (
    r"model_ema\..*",
    r"betas|alphas_cumprod(_prev)?|(sqrt|sqrt_one_minus|log_one_minus|sqrt_recip|sqrt_recipm1)_alphas_cumprod",
    r"posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)",
    r"lvlb_weights|logvar|scale_factor|denoiser\.sigmas",
    r"(first_stage_model\.)?(loss|model_ema)\..*",
    r"embedding_manager\..*",
    r".*\.position_ids",
    r"(cond_stage_model|conditioner\.embedders\.\d)\.(model\.|transformer\.)?(logit_scale|attn_mask)",
    r"v_pred|ztsnr",
)
_IGNORED_IN = {
    # CLIP's projection, of which these families' text states know nothing.
    "sd1": (r"cond_stage_model\.(transformer\.)?text_projection(\.weight)?",),
    "sdxl": (r"conditioner\.embedders\.0\.(transformer\.)?text_projection(\.weight)?",),
    "sd2": (r"cond_stage_model\.model\.text_projection", r"cond_stage_model\.model\.transformer\.resblocks\.23\..*")
}
_FOREIGN = {  # how a name begins: what it belongs to
    r"(model\.diffusion_model\.)?joint_blocks\.": "SD 3",
    r"(model\.diffusion_model\.)?double_blocks\.": "Flux",
    r"edm_mean$": "Playground 2.5, of EDM's noise",
    r"edm_vpred\.": "CosXL, of EDM's noise",
    r"conditioner\.embedders\.0\.model\.": "the SDXL refiner",
    r"low_scale_model\.": "an upscaler",
    r"depth_model\.": "a depth-to-image model",
    r"(noise_augmentor|embedder)\.": "SD 2.1 unCLIP",
    r"model\.diffusion_model\..*\.time_(stack|mixer)\b": "Stable Video Diffusion",
    r"control_model\.": "a ControlNet",
    r"lora_(unet|te)": "a LoRA",
    r"(unet\.)?(down_blocks|up_blocks|mid_block)\.": "a network in the layout of diffusers' folders",
    r"text_model\.": "a text encoder alone",
    r"(encoder|decoder)\.": "an autoencoder alone",
}
_CHANNELS = {5: "depth-to-image", 7: "upscaling", 8: "editing (InstructPix2Pix)", 9: "inpainting"}
_KINDS = {"epsilon": "eps", "v": "v", "v_prediction": "v"}
_WANTED = "give a whole text-to-image SD 1.x, SD 2.x or SDXL base model in the original layout"


@dataclass(frozen=True)
class Description:
    """What names, shapes and metadata tell of a file."""

    family: str
    components: tuple[str, ...]  # those the file has; shared files may lack the autoencoder
    kind: str | None  # "eps" or "v" where the file says so; tensors cannot tell and most files do not
    zero_terminal_snr: bool  # the file says that it was trained so


def detect(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> Description:
    """What a file with these names and shapes holds.

    Raises ValueError naming what it is instead of a text-to-image SD 1.x, SD 2.x or SDXL base model where that
    is known, or the first few names that have no place in one.
    """
    for pattern, what in _FOREIGN.items():
        if any(re.match(pattern, key) for key in shapes):
            raise ValueError(f"this is {what}; {_WANTED}")
    prefix = FAMILIES["sd1"]["unet"].prefix
    if not (unet := under(prefix, shapes)):
        raise ValueError(f"it has no U-Net ({prefix}*) but {some(sorted(shapes)) or 'nothing'}; {_WANTED}")
    sizes = unet_sizes(unet)
    if sizes["out_channels"]:
        use = _CHANNELS.get(sizes["latent_channels"], "something else")
        raise ValueError(f"its U-Net takes {sizes['latent_channels']} channels, for {use}; {_WANTED}")
    family = "sdxl" if sizes["added_width"] else "sd2" if sizes["linear_projection"] else "sd1"
    kept = {key: shape for key, shape in shapes.items() if not is_ignored(key, family)}
    there = {name: part.prefix for name, part in FAMILIES[family].items() if under(part.prefix, kept)}
    if odd := sorted(key for key in kept if not key.startswith(tuple(there.values()))):
        raise ValueError(f"{len(odd)} names have no place in a model of the family {family}: {some(odd)}; {_WANTED}")
    kind = _KINDS.get((metadata or {}).get("modelspec.prediction_type", ""))
    return Description(family, tuple(there), "v" if "v_pred" in shapes else kind, "ztsnr" in shapes)


def under(prefix: str, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Those whose names begin so, without that beginning."""
    return {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}


def is_ignored(key: str, family: str) -> bool:
    """Whether a tensor of a file is passed over by design."""
    return any(re.fullmatch(pattern, key) for pattern in (*IGNORED, *_IGNORED_IN.get(family, ())))
