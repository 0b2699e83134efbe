"""The autoencoder of an original Stable Diffusion file: its names there against diffusers', and its sizes.

There, decoder.up counts levels from the finest (diffusers' up_blocks from the coarsest), and the attention in the
middle is of 1x1 convolutions (diffusers' of linear maps).
"""

from collections.abc import Mapping
from typing import Any

from lcm_jax.weights.ldm_layout import POINTWISE, SAME, Entry, Form, Shapes, both, count

_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "conv_shortcut": "nin_shortcut"}


def autoencoder_sizes(shapes: Shapes) -> dict[str, Any]:
    """The AutoencoderConfig fields that shapes tell, by original names (without prefix) or by diffusers'.

    The scale of latents is not among them. Raises ValueError where a tensor that tells sizes is missing.
    """
    original = "encoder.down.0.block.0.conv1.weight" in shapes
    level = "encoder.down.{}.block.0.conv1.weight" if original else "encoder.down_blocks.{}.resnets.0.conv1.weight"
    layer = "encoder.down.0.block.{}.conv1.weight" if original else "encoder.down_blocks.0.resnets.{}.conv1.weight"
    for key in (level.format(0), "post_quant_conv.weight"):
        if key not in shapes:
            raise ValueError(f"the autoencoder lacks {key}: it is incomplete or of another kind")
    return {
        "channels": tuple(shapes[level.format(i)][0] for i in range(count(level, shapes))),
        "layers": count(layer, shapes),
        "latent_channels": shapes["post_quant_conv.weight"][0],
    }


def autoencoder_entries(sizes: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of an autoencoder of these sizes (AutoencoderConfig fields)."""
    levels = len(sizes["channels"])
    return [Entry(original_name(key, levels), (key,), _form(key)) for key in _keys(sizes)]


def original_name(key: str, levels: int) -> str:
    """The original name of one of diffusers' keys."""
    match key.split("."):
        case [side, "down_blocks" | "up_blocks" as way, i, kind, j, module, leaf]:
            block = f"{side}.down.{i}" if way == "down_blocks" else f"{side}.up.{levels - 1 - int(i)}"
            if kind == "resnets":
                return f"{block}.block.{j}.{_RESNET[module]}.{leaf}"
            return f"{block}.{kind.removesuffix('rs')}.{module}.{leaf}"
        case [side, "mid_block", "resnets", j, module, leaf]:
            return f"{side}.mid.block_{int(j) + 1}.{_RESNET[module]}.{leaf}"
        case [side, "mid_block", "attentions", _, *module, leaf]:
            return f"{side}.mid.attn_1.{_ATTENTION['.'.join(module)]}.{leaf}"
        case [side, "conv_norm_out", leaf]:
            return f"{side}.norm_out.{leaf}"
    return key


def _form(key: str) -> Form:
    return POINTWISE if ".attentions." in key and key.endswith("weight") and "group_norm" not in key else SAME


def _keys(sizes: Mapping[str, Any]) -> list[str]:
    """The keys of diffusers' AutoencoderKL."""
    channels, layers = sizes["channels"], sizes["layers"]
    keys = both("quant_conv", "post_quant_conv")
    for side in ("encoder", "decoder"):
        keys += both(f"{side}.conv_in", f"{side}.conv_norm_out", f"{side}.conv_out")
        keys += _resnet(f"{side}.mid_block.resnets.0", False) + _resnet(f"{side}.mid_block.resnets.1", False)
        keys += both(*(f"{side}.mid_block.attentions.0.{part}" for part in _ATTENTION))
    ways = (
        ("encoder.down_blocks", "downsamplers", channels, layers),
        ("decoder.up_blocks", "upsamplers", channels[::-1], layers + 1),
    )
    for blocks, change, widths, depth in ways:
        inp = widths[0]
        for i, width in enumerate(widths):
            for j in range(depth):
                keys += _resnet(f"{blocks}.{i}.resnets.{j}", inp != width)
                inp = width
            if i < len(widths) - 1:
                keys += both(f"{blocks}.{i}.{change}.0.conv")
    return keys


def _resnet(name: str, shortcut: bool) -> list[str]:
    return both(*(f"{name}.{part}" for part in _RESNET if shortcut or part != "conv_shortcut"))
