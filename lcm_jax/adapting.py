"""LoRA files put into a pipeline: styles, and LCM-LoRA, which makes a teacher sample in a few steps."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from lcm_jax.captions import CaptionEncoder
from lcm_jax.data.shards import sha256
from lcm_jax.models import lora
from lcm_jax.pipeline import Pipeline
from lcm_jax.source import network, text_networks
from lcm_jax.typing import Params
from lcm_jax.weights import lora_file

Files = Sequence[tuple[str | os.PathLike, float]]  # (file, strength)


def adapted(pipe: Pipeline, files: Files, few_step: bool = False) -> Pipeline:
    """The pipeline with the adapters of LoRA files (diffusers', peft's or kohya's) merged in, each at its strength.

    `few_step` samples the result as a consistency model, guided from outside where w > 0: one of the files is an
    LCM-LoRA, the others styles (LCM-LoRA section 3: .8 of a style beside 1 of LCM).
    Raises FileNotFoundError or ValueError naming the file and the modules that do not fit.
    """
    files = [(lora_file.file_of(path), strength) for path, strength in files]
    networks = {"unet": pipe.params["unet"]}
    towers = dict(zip(text_networks(pipe.spec), pipe.captions.params, strict=True)) if pipe.spec.text.towers else {}
    trees = {name: network(pipe.spec, name).abstract() for name in (*networks, *towers)}
    read = [(lora_file.read(path, trees), strength) for path, strength in files]
    merged = {name: _merged(name, params, read) for name, params in {**networks, **towers}.items()}
    spec = pipe.spec
    if few_step and spec.role == "diffusion":
        spec = dataclasses.replace(spec, role="consistency", guidance=None)
    told = [[path.name, strength, sha256(path)] for path, strength in files]
    origin = {**pipe.origin, "loras": told}
    captions = WithParams(pipe.captions, [merged[name] for name in towers]) if towers else pipe.captions
    params = {**pipe.params, "unet": merged["unet"]}
    return Pipeline(spec, params, origin, captions, attention=pipe.attention)


def _merged(name: str, params: Params, read: Sequence[tuple[Mapping, float]]) -> Params:
    parts = [(*found[name], strength) for found, strength in read if name in found]
    return lora.combine(params, parts) if parts else params


class WithParams:
    """A caption encoder with other weights."""

    def __init__(self, encoder: CaptionEncoder, params: Sequence[Params]):
        self.identity = {**encoder.identity, "adapted": True}
        self.params, self.tokens, self.states = list(params), encoder.tokens, encoder.states


def parse(given: str) -> tuple[str, float]:
    """FILE or FILE:STRENGTH; ValueError for a strength that is no number."""
    path, colon, strength = given.rpartition(":")
    if not colon or Path(given).exists():
        return given, 1.0
    try:
        return path, float(strength)
    except ValueError:
        raise ValueError(f"{given!r} is neither a file nor FILE:STRENGTH such as {given}:0.8") from None
