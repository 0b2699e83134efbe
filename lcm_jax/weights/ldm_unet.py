"""The U-Net of an original Stable Diffusion file: its names there against diffusers', and its sizes.

There, one list of blocks runs down and one up: input_blocks.i and output_blocks.i hold at 0 a residual block (or
the down-sampling), then at 1 a transformer if the level has them, and last the up-sampling of a level.
"""

from collections.abc import Mapping
from typing import Any

from lcm_jax.weights.ldm_layout import Entry, Shapes, both, count

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_STEM = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    # The map of w is none of the original's: files of consistency models keep diffusers' name for it.
    "time_embedding.cond_proj": "time_embedding.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_MID = "mid_block.attentions.0"


def unet_sizes(shapes: Shapes) -> dict[str, Any]:
    """The UNetConfig fields that shapes tell, by original names (without prefix) or by diffusers'.

    Head counts leave no trace in a file. They are given as published models have them: 8 where the projections
    around transformers are convolutions (SD 1.x), one for every 64 channels where they are linear.
    Raises ValueError where a tensor that tells sizes is missing.
    """
    original = "input_blocks.0.0.weight" in shapes
    if original:
        blocks = len({key.split(".")[1] for key in shapes if key.startswith("input_blocks.")})
        levels = 1 + sum(key.startswith("input_blocks.") and key.endswith(".0.op.weight") for key in shapes)
        layers = blocks // levels - 1
    else:
        levels = count("down_blocks.{}.resnets.0.conv1.weight", shapes)
        layers = count("down_blocks.0.resnets.{}.conv1.weight", shapes)

    def name(key: str) -> str:
        return original_name(key, layers, ()) if original else key

    def shape(key: str) -> tuple[int, ...]:
        if name(key) not in shapes:
            raise ValueError(f"the U-Net lacks {name(key)}: it is incomplete or of another kind")
        return tuple(shapes[name(key)])

    def depth(transformer: str) -> int:
        return count(name(f"{transformer}.transformer_blocks.{{}}.norm1.weight"), shapes)

    channels = tuple(shape(f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(max(1, levels)))
    attention = tuple(name(f"down_blocks.{i}.attentions.0.norm.weight") in shapes for i in range(levels))
    idle = (*[1] * (levels - 1), depth(_MID))  # the depth of the last level is also that of the middle
    latent, out = shape("conv_in.weight")[1], shape("conv_out.weight")[0]
    linear = len(shape(f"{_MID}.proj_in.weight")) == 2
    guided, added = "time_embedding.cond_proj.weight", "add_embedding.linear_1.weight"
    return {
        "channels": channels,
        "attention": attention,
        "depth": tuple(depth(f"down_blocks.{i}.attentions.0") if attention[i] else idle[i] for i in range(levels)),
        "heads": tuple(max(1, c // 64) if linear else 8 for c in channels),
        "layers": layers,
        "latent_channels": latent,
        "out_channels": None if out == latent else out,
        "context_width": shape(f"{_MID}.transformer_blocks.0.attn2.to_k.weight")[1],
        "linear_projection": linear,
        "w_width": shape(guided)[1] if name(guided) in shapes else None,
        "added_width": shape(added)[1] if name(added) in shapes else None,
    }


def unet_entries(sizes: Mapping[str, Any]) -> list[Entry]:
    """Every tensor of a U-Net of these sizes (UNetConfig fields)."""
    return [Entry(original_name(key, sizes["layers"], sizes["attention"]), (key,)) for key in _keys(sizes)]


def original_name(key: str, layers: int, attention: tuple[bool, ...]) -> str:
    """The original name of one of diffusers' keys; `attention` is needed for those of up_blocks only."""
    match key.split("."):
        case ["down_blocks", i, "downsamplers", _, _, leaf]:
            return f"input_blocks.{(int(i) + 1) * (layers + 1)}.0.op.{leaf}"
        case ["up_blocks", i, "upsamplers", _, *rest]:
            last = int(i) * (layers + 1) + layers
            return ".".join([f"output_blocks.{last}.{1 + attention[-1 - int(i)]}", *rest])
        case ["down_blocks", i, kind, j, *rest]:
            return _in_block(f"input_blocks.{1 + int(i) * (layers + 1) + int(j)}", kind, rest)
        case ["up_blocks", i, kind, j, *rest]:
            return _in_block(f"output_blocks.{int(i) * (layers + 1) + int(j)}", kind, rest)
        case ["mid_block", "resnets", j, *rest]:
            return _in_block(f"middle_block.{2 * int(j)}", "", rest)
        case ["mid_block", _, _, *rest]:
            return ".".join(["middle_block.1", *rest])
    module, _, leaf = key.rpartition(".")
    return f"{_STEM[module]}.{leaf}"


def _in_block(block: str, kind: str, rest: list[str]) -> str:
    if kind == "attentions":
        return ".".join([block, "1", *rest])
    module, leaf = rest
    return ".".join([block, *["0"] * bool(kind), _RESNET[module], leaf])


def _keys(sizes: Mapping[str, Any]) -> list[str]:
    """The keys of diffusers' UNet2DConditionModel."""
    channels, layers, levels = sizes["channels"], sizes["layers"], len(sizes["channels"])
    keys = both("conv_in", "time_embedding.linear_1", "time_embedding.linear_2")
    if sizes["w_width"]:
        keys.append("time_embedding.cond_proj.weight")
    if sizes["added_width"]:
        keys += both("add_embedding.linear_1", "add_embedding.linear_2")

    def layer(block: str, j: int, inp: int, i: int) -> list[str]:
        there = _transformer(f"{block}.attentions.{j}", sizes["depth"][i]) if sizes["attention"][i] else []
        return _resnet(f"{block}.resnets.{j}", inp != channels[i]) + there

    width, skips = channels[0], [channels[0]]
    for i in range(levels):
        for j in range(layers):
            keys += layer(f"down_blocks.{i}", j, width, i)
            width = channels[i]
        if i < levels - 1:
            keys += both(f"down_blocks.{i}.downsamplers.0.conv")
        skips += [width] * (layers + (i < levels - 1))
    keys += _resnet("mid_block.resnets.0", False) + _resnet("mid_block.resnets.1", False)
    keys += _transformer(_MID, sizes["depth"][-1])
    for k, i in enumerate(reversed(range(levels))):
        for j in range(layers + 1):
            keys += layer(f"up_blocks.{k}", j, width + skips.pop(), i)
            width = channels[i]
        if i > 0:
            keys += both(f"up_blocks.{k}.upsamplers.0.conv")
    return keys + both("conv_norm_out", "conv_out")


def _resnet(name: str, shortcut: bool) -> list[str]:
    return both(*(f"{name}.{part}" for part in _RESNET if shortcut or part != "conv_shortcut"))


def _transformer(name: str, depth: int) -> list[str]:
    keys = both(f"{name}.norm", f"{name}.proj_in", f"{name}.proj_out")
    for block in (f"{name}.transformer_blocks.{k}" for k in range(depth)):
        parts = ("norm1", "norm2", "norm3", "attn1.to_out.0", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2")
        keys += both(*(f"{block}.{part}" for part in parts))
        keys += [f"{block}.{attention}.to_{x}.weight" for attention in ("attn1", "attn2") for x in "qkv"]
    return keys
