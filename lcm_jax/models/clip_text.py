"""The CLIP text encoders of Stable Diffusion, with the pre-norm transformer that the image tower shares.

Module paths equal the key names of Hugging Face's CLIPTextModelWithProjection (arXiv 2103.00020, section 2.4).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from lcm_jax.models.functional import Net, functional, kept

States = Float[Array, "b l d"]
Ids = Int[Array, "b l"]
Pooled = Float[Array, "b d"]

# Tensors of published files that the text tower does not need: an old buffer, and the rest of a whole CLIP.
UNUSED_KEYS = (
    r"(text_model\.)?embeddings\.position_ids",
    r"vision_model\..*",
    r"visual_projection\.weight",
    r"logit_scale",
)

ACTIVATIONS = {
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
}


@dataclass(frozen=True)
class TowerConfig:
    """What both towers of CLIP have; the defaults are the text tower of ViT-L/14."""

    width: int = 768
    layers: int = 12
    heads: int = 12
    inner: int = 3072
    hidden_act: str = "quick_gelu"
    eps: float = 1e-5
    projection: int | None = None  # width of the space text and images share; None for an encoder without the map
    dtype: str = "float32"  # compute; parameters stay float32

    def __post_init__(self) -> None:
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"CLIP hidden_act is {self.hidden_act!r}; choose one of {', '.join(ACTIVATIONS)}")
        if self.width % self.heads:
            raise ValueError(f"CLIP width {self.width} does not split into {self.heads} heads; change heads")
        if self.layers < 1:
            raise ValueError(f"CLIP has {self.layers} layers; it needs at least one")


@dataclass(frozen=True)
class ClipTextConfig(TowerConfig):
    """Sizes of a CLIP text encoder; the defaults are those of SD 1.x."""

    vocabulary: int = 49408
    positions: int = 77
    # Where a caption ends: the first token of this id; 2, as old files say by mistake, means the largest id.
    eos_token_id: int = 2


CLIP_TEXT = {
    # 123.1 M, OpenAI's ViT-L/14 (SD 1.x, first encoder of SDXL).
    "sd15": ClipTextConfig(),
    # 340.4 M, OpenCLIP's ViT-H/14 without its last layer (SD 2.x).
    "sd21": ClipTextConfig(width=1024, layers=23, heads=16, inner=4096, hidden_act="gelu"),
    # 694.7 M, OpenCLIP's ViT-bigG/14 (second encoder of SDXL).
    "sdxl2": ClipTextConfig(width=1280, layers=32, heads=20, inner=5120, hidden_act="gelu", projection=1280),
}


class ClipText(NamedTuple):
    """What a text encoder says of captions."""

    last: States  # after the final norm (context of SD 1.x and 2.x)
    penultimate: States  # before the last layer, not normed (context of SDXL)
    pooled: Pooled  # the last state at the end of the caption
    embeds: Pooled | None  # `pooled`, projected (pooled text of SDXL); None without a projection


class SelfAttention(nnx.Module):
    """Multi-head attention, causal for text; logits and softmax are float32 or wider."""

    def __init__(self, cfg: TowerConfig, causal: bool, rngs: nnx.Rngs):
        self.heads, self.causal = cfg.heads, causal
        linear = lambda: nnx.Linear(cfg.width, cfg.width, rngs=rngs, dtype=jnp.dtype(cfg.dtype))
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = linear(), linear(), linear(), linear()

    def __call__(self, x: States) -> States:
        length, size = x.shape[1], x.shape[2] // self.heads
        q, k, v = (part(x).reshape(-1, length, self.heads, size) for part in (self.q_proj, self.k_proj, self.v_proj))
        wide = jnp.promote_types(q.dtype, jnp.float32)
        logits = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=wide) * size**-0.5
        if self.causal:
            seen = jnp.tril(jnp.ones((length, length), bool))
            logits = jnp.where(seen[None, None], logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(v.dtype)
        return self.out_proj(jnp.einsum("bhnm,bmhd->bnhd", weights, v).reshape(x.shape))


class Mlp(nnx.Module):
    """Widen, activate, narrow."""

    def __init__(self, cfg: TowerConfig, rngs: nnx.Rngs):
        self.hidden_act = cfg.hidden_act
        self.fc1 = nnx.Linear(cfg.width, cfg.inner, rngs=rngs, dtype=jnp.dtype(cfg.dtype))
        self.fc2 = nnx.Linear(cfg.inner, cfg.width, rngs=rngs, dtype=jnp.dtype(cfg.dtype))

    def __call__(self, x: States) -> States:
        return self.fc2(ACTIVATIONS[self.hidden_act](self.fc1(x)))


def layer_norm(cfg: TowerConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm over the width, computed in the compute dtype or wider."""
    return nnx.LayerNorm(cfg.width, epsilon=cfg.eps, use_fast_variance=False, rngs=rngs, dtype=jnp.dtype(cfg.dtype))


class Layer(nnx.Module):
    """Attention, then the MLP; each pre-normed and residual."""

    def __init__(self, cfg: TowerConfig, causal: bool, rngs: nnx.Rngs):
        self.layer_norm1, self.layer_norm2 = layer_norm(cfg, rngs), layer_norm(cfg, rngs)
        self.self_attn = SelfAttention(cfg, causal, rngs)
        self.mlp = Mlp(cfg, rngs)

    def __call__(self, x: States) -> States:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, cfg: TowerConfig, causal: bool, rngs: nnx.Rngs):
        self.layers = nnx.List([Layer(cfg, causal, rngs) for _ in range(cfg.layers)])

    def __call__(self, x: States) -> tuple[States, States]:
        """The states after all layers and those before the last one."""
        before = x
        for layer in self.layers:
            before, x = x, layer(x)
        return x, before


def rows(table: nnx.Embed, ids: Int[Array, "*n"]) -> Float[Array, "*n d"]:
    """The embeddings of ids, in the table's own dtype: only what is looked up needs a cast."""
    return jnp.take(table.embedding[...], ids, axis=0)


class TextEmbeddings(nnx.Module):
    """Token and position embeddings; an id outside the vocabulary gives NaN."""

    def __init__(self, cfg: ClipTextConfig, rngs: nnx.Rngs):
        self.token_embedding = nnx.Embed(cfg.vocabulary, cfg.width, rngs=rngs)
        self.position_embedding = nnx.Embed(cfg.positions, cfg.width, rngs=rngs)

    def __call__(self, ids: Ids) -> States:
        position = rows(self.position_embedding, jnp.arange(ids.shape[1]))[None]
        return rows(self.token_embedding, ids) + position


class TextTransformer(nnx.Module):
    """Embeddings, layers and the final norm."""

    def __init__(self, cfg: ClipTextConfig, rngs: nnx.Rngs):
        self.dtype = jnp.dtype(cfg.dtype)
        self.embeddings = TextEmbeddings(cfg, rngs)
        self.encoder = Encoder(cfg, True, rngs)
        self.final_layer_norm = layer_norm(cfg, rngs)

    def __call__(self, ids: Ids) -> tuple[States, States]:
        x, before = self.encoder(self.embeddings(ids).astype(self.dtype))
        return self.final_layer_norm(x), before


class ClipTextEncoder(nnx.Module):
    """Token ids to token states and one vector a caption."""

    def __init__(self, cfg: ClipTextConfig, rngs: nnx.Rngs):
        self.cfg = cfg
        self.text_model = TextTransformer(cfg, rngs)
        self.text_projection = projection(cfg, rngs)

    def __call__(self, ids: Ids) -> ClipText:
        """The result in float32 (float64 if computed so) whatever the compute dtype."""
        if ids.shape[1] > self.cfg.positions:
            raise ValueError(f"{ids.shape[1]} tokens, but {self.cfg.positions} positions: cut captions to that length")
        last, penultimate = self.text_model(ids)
        pooled = jax.vmap(lambda states, end: states[end])(last, self._end(ids))
        embeds = None if self.text_projection is None else self.text_projection(pooled)
        return jax.tree.map(widen, ClipText(last, penultimate, pooled, embeds))

    def _end(self, ids: Ids) -> Int[Array, " b"]:
        eos = self.cfg.eos_token_id
        return jnp.argmax(ids if eos == 2 else ids == eos, axis=-1)


def projection(cfg: TowerConfig, rngs: nnx.Rngs) -> nnx.Linear | None:
    """The map into the space text and images share, if this encoder has one."""
    if cfg.projection is None:
        return None
    return nnx.Linear(cfg.width, cfg.projection, use_bias=False, rngs=rngs, dtype=jnp.dtype(cfg.dtype))


def widen(x: Array) -> Array:
    """x in float32, or float64 where it is that already."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@kept
def clip_text(cfg: ClipTextConfig = ClipTextConfig()) -> Net:
    """The encoder as pure functions: apply(params, ids [b, l]) -> ClipText.

    Padding is not masked: the states of padding tokens are part of the context, as Stable Diffusion has them.
    """
    return functional(lambda rngs: ClipTextEncoder(cfg, rngs), cfg)


def file_names(keys: Iterable[str]) -> Callable[[str], str]:
    """The `rename` of weights.bijection for a file of these keys.

    Encoders that transformers 5 built and saved lack "text_model."; those it loaded and saved again keep it.
    """
    return str if any(key.startswith("text_model.") for key in keys) else lambda key: key.removeprefix("text_model.")


_TEXT_KEYS = {  # of a config.json: our name and what is meant where it is left out
    "vocab_size": ("vocabulary", 49408),
    "hidden_size": ("width", 512),
    "intermediate_size": ("inner", 2048),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 8),
    "max_position_embeddings": ("positions", 77),
    "hidden_act": ("hidden_act", "quick_gelu"),
    "layer_norm_eps": ("eps", 1e-5),
    "eos_token_id": ("eos_token_id", 49407),
}


def clip_text_config(value: Mapping[str, Any]) -> ClipTextConfig:
    """The sizes in a Hugging Face config.json, of a text encoder or of a whole CLIP model.

    Raises ValueError, in one line, for another kind of model or a value that is not supported.
    """
    own, projected = tower_of(value, "text", "Text")
    if own.get("use_attention_mask"):
        raise ValueError("config.json has use_attention_mask true: masking of padding is not supported")
    return ClipTextConfig(**sizes(own, _TEXT_KEYS), projection=projected)


def tower_of(value: Mapping[str, Any], name: str, title: str) -> tuple[Mapping[str, Any], int | None]:
    """The part of a config.json that concerns one tower, and the width of its projection if it has one."""
    kind, plain = value.get("model_type"), f"CLIP{title}Model"
    if kind == "clip":
        # Old files have the part twice; the second, if there, counts.
        older = value.get(f"{name}_config_dict")
        own = value.get(f"{name}_config") if older is None else older
        return own or {}, _checked("projection_dim", value.get("projection_dim", 512), int)
    if kind != f"clip_{name}_model":
        raise ValueError(f"config.json has model_type {kind!r}; a CLIP {name} tower has 'clip_{name}_model' or 'clip'")
    architectures = value.get("architectures")
    if architectures == [plain]:
        return value, None
    if architectures == [f"{plain}WithProjection"]:
        return value, _checked("projection_dim", value.get("projection_dim", 512), int)
    raise ValueError(f"config.json has architectures {architectures!r}; choose {plain} or {plain}WithProjection")


def sizes(value: Mapping[str, Any], keys: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Our names and the values of `keys` in a config.json; ValueError names one of the wrong type."""
    return {ours: _checked(key, value.get(key, default), type(default)) for key, (ours, default) in keys.items()}


def _checked(key: str, value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (kind is int and value < 1):
        wanted = "a positive int" if kind is int else f"a {kind.__name__}"
        raise ValueError(f"config.json has {key} {value!r}; supported is {wanted}")
    return value
