"""The text encoders of an original Stable Diffusion file: their names there against transformers', and their sizes.

OpenAI's encoder (SD 1.x, the first of SDXL) is stored as transformers names it. OpenCLIP's (SD 2.x, the second of
SDXL) joins the maps to q, k and v into one and stores the text projection transposed.
"""

from collections.abc import Collection, Mapping
from typing import Any

from lcm_jax.weights.ldm_layout import THIRDS, TRANSPOSED, Entry, Shapes, both, count

_TOP = "text_model."
_TOKENS, _POSITIONS = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
_PROJECTION = "text_projection.weight"
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_QKV = tuple(f"self_attn.{x}_proj" for x in "qkv")


def clip_sizes(shapes: Shapes) -> dict[str, Any]:
    """The ClipTextConfig fields of OpenAI's encoder, from shapes by names without prefix.

    Heads are 64 wide, as in every published one. Raises ValueError where a tensor that tells sizes is missing.
    """
    if _TOKENS in shapes:
        shapes = {_TOP + key: shape for key, shape in shapes.items()}
    return _sizes(shapes, "quick_gelu")


def clip_entries(sizes: Mapping[str, Any], names: Collection[str] = ()) -> list[Entry]:
    """Every tensor of OpenAI's encoder of these sizes (ClipTextConfig fields).

    Where `names`, those in the file, lack the leading "text_model." (models derived from NovelAI's), so do these.
    """
    keys = [_TOKENS, _POSITIONS, *both("final_layer_norm")]
    for layer in (f"encoder.layers.{i}" for i in range(sizes["layers"])):
        keys += both(*(f"{layer}.{part}" for part in (*_LAYER, *_QKV)))
    top = "" if _TOKENS in names else _TOP
    return [Entry(top + key, (_TOP + key,)) for key in keys]


def openclip_sizes(shapes: Shapes) -> dict[str, Any]:
    """The ClipTextConfig fields of OpenCLIP's encoder, by original names (without prefix) or by transformers'.

    Heads are 64 wide, as in every published one. Raises ValueError where a tensor that tells sizes is missing.
    """
    if "token_embedding.weight" in shapes:
        layers = count("transformer.resblocks.{}.ln_1.weight", shapes)
        entries = [entry for entry in _openclip(layers, True, shapes) if entry.original in shapes]
        pairs = [(entry.ours, entry.shapes(tuple(shapes[entry.original]))) for entry in entries]
        shapes = {key: shape for keys, parts in pairs for key, shape in zip(keys, parts, strict=True)}
    return _sizes(shapes, "gelu")


def openclip_entries(sizes: Mapping[str, Any], names: Collection[str] = ()) -> list[Entry]:
    """Every tensor of OpenCLIP's encoder of these sizes (ClipTextConfig fields).

    Where `names`, those in the file, call the projection "text_projection.weight", it is not transposed.
    """
    return _openclip(sizes["layers"], sizes["projection"] is not None, names)


def _openclip(layers: int, projection: bool, names: Collection[str]) -> list[Entry]:
    entries = [Entry("token_embedding.weight", (_TOP + _TOKENS,)), Entry("positional_embedding", (_TOP + _POSITIONS,))]
    modules = {"ln_final": "text_model.final_layer_norm"}
    for i in range(layers):
        there, here = f"transformer.resblocks.{i}", f"text_model.encoder.layers.{i}"
        modules |= {f"{there}.{original}": f"{here}.{ours}" for ours, original in _LAYER.items()}
        for leaf in ("weight", "bias"):
            ours = tuple(f"{here}.{part}.{leaf}" for part in _QKV)
            entries.append(Entry(f"{there}.attn.in_proj_{leaf}", ours, THIRDS))
    for pair in modules.items():
        entries += [Entry(original, (ours,)) for original, ours in zip(*map(both, pair), strict=True)]
    if projection and _PROJECTION in names:
        entries.append(Entry(_PROJECTION, (_PROJECTION,)))
    elif projection:
        entries.append(Entry("text_projection", (_PROJECTION,), TRANSPOSED))
    return entries


def _sizes(shapes: Shapes, hidden_act: str) -> dict[str, Any]:
    """From shapes by transformers' names."""

    def shape(key: str) -> tuple[int, ...]:
        if key not in shapes:
            raise ValueError(f"the text encoder lacks {key}: it is incomplete or of another kind")
        return tuple(shapes[key])

    vocabulary, width = shape(_TOP + _TOKENS)
    return {
        "width": width,
        "layers": count("text_model.encoder.layers.{}.layer_norm1.weight", shapes),
        "heads": max(1, width // 64),
        "inner": shape("text_model.encoder.layers.0.mlp.fc1.weight")[0],
        "hidden_act": hidden_act,
        "projection": shape(_PROJECTION)[0] if _PROJECTION in shapes else None,
        "vocabulary": vocabulary,
        "positions": shape(_TOP + _POSITIONS)[0],
    }
