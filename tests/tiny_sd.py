"""Stable Diffusion in miniature: SD- and SDXL-shaped models with CLIP encoders and tokenizers of their own."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import tiny
from tokenizers.pre_tokenizers import ByteLevel

from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.clip_text import ClipTextConfig
from lcm_jax.models.spec import ModelSpec, TextSpec
from lcm_jax.models.unet import UNetConfig
from lcm_jax.source import network, text_networks
from lcm_jax.weights import folder

START, END = "<|startoftext|>", "<|endoftext|>"
LENGTH = 12  # tokens of a caption
LETTERS = sorted(ByteLevel.alphabet())
WORDS = {piece: i for i, piece in enumerate([*LETTERS, *(c + "</w>" for c in LETTERS), START, END])}
TOWER = ClipTextConfig(
    width=16, layers=2, heads=2, inner=24, vocabulary=len(WORDS), positions=LENGTH, eos_token_id=WORDS[END]
)
UNET = UNetConfig((16,), (True,), (1,), (2,), 1, context_width=16, norm_groups=8)
ADDED = 8 + 6 * 4  # projected text and six size ids
AUTOENCODER = AutoencoderConfig((8, 8, 8, 8), 1, norm_groups=4)


def spec(family: str = "sd", role: str = "diffusion", kind: str = "eps", **changes) -> ModelSpec:
    """A tiny model's description: "sd", or "sdxl" with two encoders, pooled text and size ids."""
    net, towers = UNET, (TOWER,)
    if family == "sdxl":
        towers = (TOWER, dataclasses.replace(TOWER, hidden_act="gelu", projection=8))
        net = dataclasses.replace(net, context_width=32, linear_projection=True, added_width=ADDED, added_time_width=4)
    text = TextSpec("clip", LENGTH, towers, zero_empty=family == "sdxl")
    return ModelSpec(role, kind, 16, net, AUTOENCODER, text=text, **changes)


def weights(of: ModelSpec, seed: int = 0) -> dict:
    """Random weights of every network."""
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))).astype(np.float32)  # noqa: E731
    texts = {name: jax.tree.map(draw, network(of, name).abstract()) for name in text_networks(of)}
    return {**tiny.weights(of, seed), **texts}


def tokenizer(where: Path) -> Path:
    """CLIP's tokenizer with bytes for words."""
    where.mkdir(parents=True)
    (where / "vocab.json").write_text(json.dumps(WORDS))
    (where / "merges.txt").write_text("#version: 0.2\n")
    (where / "tokenizer_config.json").write_text(json.dumps({"model_max_length": LENGTH, "pad_token": END}))
    return where


def model_folder(where: Path, of: ModelSpec | None = None, seed: int = 0) -> Path:
    """A model folder on disk, whole."""
    of = of or spec()
    folder.write(where, of.to_json(), weights(of, seed), "float32")
    for name, _ in zip(("tokenizer", "tokenizer_2"), of.text.towers, strict=False):
        tokenizer(where / name)
    return where
