"""The BERT-style text encoder (all-MiniLM-L6-v2 by default) whose token states condition the U-Net.

Module paths equal the key names of Hugging Face's BertModel (arXiv 1810.04805; MiniLM: arXiv 2002.10957).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from lcm_jax.models.functional import Net, functional, kept
from lcm_jax.typing import Params

States = Float[Array, "b l d"]
Ids = Int[Array, "b l"]
Mask = Bool[Array, "b l"]  # true where a token stands

# Tensors of the published file that token states do not need.
UNUSED_KEYS = (r"pooler\..*", r"embeddings\.position_ids")


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder; the defaults are all-MiniLM-L6-v2."""

    vocabulary: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    inner: int = 1536
    positions: int = 512
    eps: float = 1e-12


class Embeddings(nnx.Module):
    """Word, position and (always the first) segment embeddings, normalised."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.word_embeddings = nnx.Embed(cfg.vocabulary, cfg.width, rngs=rngs)
        self.position_embeddings = nnx.Embed(cfg.positions, cfg.width, rngs=rngs)
        self.token_type_embeddings = nnx.Embed(2, cfg.width, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(cfg.width, epsilon=cfg.eps, use_fast_variance=False, rngs=rngs)

    def __call__(self, ids: Ids) -> States:
        position = self.position_embeddings(jnp.arange(ids.shape[1]))[None]
        segment = self.token_type_embeddings(jnp.zeros((1, 1), jnp.int32))
        return self.LayerNorm(self.word_embeddings(ids) + position + segment)


class SelfAttention(nnx.Module):
    """Queries, keys and values; padded tokens are not attended to."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.heads = cfg.heads
        self.query = nnx.Linear(cfg.width, cfg.width, rngs=rngs)
        self.key = nnx.Linear(cfg.width, cfg.width, rngs=rngs)
        self.value = nnx.Linear(cfg.width, cfg.width, rngs=rngs)

    def __call__(self, x: States, mask: Mask) -> States:
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (part(x).reshape(split) for part in (self.query, self.key, self.value))
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :]).reshape(x.shape)


class AddNorm(nnx.Module):
    """A linear map, then the norm of its sum with the residual (post-norm)."""

    def __init__(self, inp: int, cfg: TextConfig, rngs: nnx.Rngs):
        self.dense = nnx.Linear(inp, cfg.width, rngs=rngs)
        self.LayerNorm = nnx.LayerNorm(cfg.width, epsilon=cfg.eps, use_fast_variance=False, rngs=rngs)

    def __call__(self, h: Float[Array, "b l e"], residual: States) -> States:
        return self.LayerNorm(self.dense(h) + residual)


class Attention(nnx.Module):
    """Self-attention and its output map; "self" is the reference's name."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.self = SelfAttention(cfg, rngs)
        self.output = AddNorm(cfg.width, cfg, rngs)

    def __call__(self, x: States, mask: Mask) -> States:
        return self.output(self.self(x, mask), x)


class Intermediate(nnx.Module):
    """Widening map with the exact (erf) gelu."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.dense = nnx.Linear(cfg.width, cfg.inner, rngs=rngs)

    def __call__(self, x: States) -> Float[Array, "b l e"]:
        return jax.nn.gelu(self.dense(x), approximate=False)


class Layer(nnx.Module):
    """Attention, then feed-forward."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.attention = Attention(cfg, rngs)
        self.intermediate = Intermediate(cfg, rngs)
        self.output = AddNorm(cfg.inner, cfg, rngs)

    def __call__(self, x: States, mask: Mask) -> States:
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.layer = nnx.List([Layer(cfg, rngs) for _ in range(cfg.layers)])

    def __call__(self, x: States, mask: Mask) -> States:
        for layer in self.layer:
            x = layer(x, mask)
        return x


class TextEncoder(nnx.Module):
    """Token ids to token states."""

    def __init__(self, cfg: TextConfig, rngs: nnx.Rngs):
        self.positions = cfg.positions
        self.embeddings = Embeddings(cfg, rngs)
        self.encoder = Encoder(cfg, rngs)

    def __call__(self, ids: Ids, mask: Mask) -> States:
        """Last-layer states [b, l, d]; those of padded positions are meaningless, see `text_states`."""
        if ids.shape[1] > self.positions:
            raise ValueError(f"{ids.shape[1]} tokens, but {self.positions} positions: shorten max_length")
        return self.encoder(self.embeddings(ids), mask)


@kept
def text_encoder(cfg: TextConfig = TextConfig()) -> Net:
    """The encoder as pure functions: apply(params, ids [b, l], mask [b, l]) -> states [b, l, d]."""
    return functional(lambda rngs: TextEncoder(cfg, rngs), cfg)


def text_states(net: Net, params: Params, ids: Ids, mask: Mask) -> States:
    """The context of a batch of captions: token states [b, l, d], zero where padded."""
    return jnp.where(mask[..., None], net.apply(params, ids, mask), 0.0)


def pooled_sentence(states: States, mask: Mask) -> Float[Array, "b d"]:
    """One unit vector a caption: the normalised mean of its token states (sentence-transformers)."""
    kept = jnp.where(mask[..., None], states, 0.0)
    mean = kept.sum(1) / jnp.maximum(mask.sum(1, keepdims=True), 1)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
