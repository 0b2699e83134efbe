"""Models, pictures and configs small enough to train within a test; captions need no download."""

import dataclasses
import json
import zlib
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from lcm_jax import source
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.spec import GuidanceSpec, ModelSpec
from lcm_jax.models.unet import unet
from lcm_jax.weights import folder
from lcm_jax.weights.safetensors_file import read_tree

SIZE = 16  # pixels: 2 x 2 x 4 latents
WIDTH = 16  # of a token's state
W_WIDTH = 8
COLOURS = ("red", "green", "blue", "white")
SHAPES = ("disc", "bar", "dot", "ring", "cross", "wave")
UNET = dataclasses.replace(
    presets.UNETS["tiny"], channels=(16,), attention=(True,), depth=(1,), heads=(2,), norm_groups=8
)


class FakeCaptions:
    """A caption encoder: random states drawn from the caption's hash, its token; the empty caption is zero."""

    params = None

    def __init__(self, length: int):
        self.length, self.width = length, WIDTH
        self.identity = {"name": "fake", "length": length}

    def tokens(self, captions) -> np.ndarray:
        return np.array([[zlib.crc32(c.encode()) & 0x7FFFFFFF] * self.length for c in captions], np.int32)

    def states(self, params, tokens) -> dict:
        draw = lambda word: jax.random.normal(jax.random.key(word), (self.length, WIDTH)) * (word != 0)  # noqa: E731
        return {"context": jax.vmap(draw)(tokens[:, 0])}


def spec(role: str = "consistency", **changes) -> ModelSpec:
    """A tiny model's description."""
    settings = {"role": role, "kind": "v", "image_size": SIZE, "autoencoder": presets.AUTOENCODERS["tiny"]}
    settings["unet"] = None if role == "autoencoder" else UNET
    if role == "consistency":
        settings |= {"unet": dataclasses.replace(UNET, w_width=W_WIDTH), "guidance": GuidanceSpec(0.0, 4.0)}
    return ModelSpec(**{**settings, **changes})


def weights(of: ModelSpec, seed: int = 0) -> dict:
    """Random weights for it; what starts at zero is drawn too, so that every input matters.

    The autoencoder is the same for every seed: models go on from latents that it made.
    """
    nets = {"autoencoder": autoencoder(of.autoencoder)}
    if of.unet is not None:
        nets["unet"] = unet(of.unet)
    rng = np.random.default_rng(seed)
    made = {name: drawn(net.abstract(), rng) for name, net in nets.items()}
    return {**made, "autoencoder": drawn(nets["autoencoder"].abstract(), np.random.default_rng(0))}


def drawn(abstract, rng: np.random.Generator):
    """Random numbers in the place of shapes, about as large as layers start."""

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = max(1, int(np.prod(leaf.shape[:-1])))
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)

    return jax.tree.map(draw, abstract)


def noise_spec(role: str = "consistency", classes: tuple[str, ...] = (), **changes) -> EDMSpec:
    """A tiny model of noise levels, of pictures of 32 pixels."""
    network = dataclasses.replace(presets.NOISE_NETWORKS["dit_tiny"], classes=len(classes))
    return EDMSpec(role, 32, network, presets.AUTOENCODERS["tiny"], classes=classes, **changes)


def noise_weights(of: EDMSpec, seed: int = 0) -> dict:
    """Random weights for it."""
    rng = np.random.default_rng(seed)
    return {name: drawn(source.network(of, name).abstract(), rng) for name in source.image_networks(of)}


def model_folder(where: Path, of: ModelSpec | None = None, seed: int = 0) -> Path:
    """A model folder on disk."""
    of = of or spec()
    return folder.write(where, of.to_json(), weights(of, seed), "float32")


def tree(where: Path, name: str) -> dict:
    """A network of a model folder as it is stored."""
    return read_tree(where / f"{name}.safetensors")


def pictures(where: Path) -> Path:
    """24 captioned pictures of four classes."""
    where.mkdir(parents=True)
    rows = []
    for i, (colour, shape) in enumerate((c, s) for c in COLOURS for s in SHAPES):
        pixels = np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(where / f"{i:02d}.png")
        rows.append({"file_name": f"{i:02d}.png", "text": f"a {colour} {shape}", "label": colour})
    (where / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return where


def config(objective: dict, model: dict, data: Path, steps: int = 2, **changes) -> dict:
    """A run of a few steps on latents."""
    return {
        "seed": 0,
        "steps": steps,
        "data": {"folder": str(data), "split": "train", "batch_size": 8},
        "model": model,
        "objective": objective,
        "optimizer": {"name": "adamw", "rate": 1e-3},
        "average": {"ema_decay": 0.9},
        "mesh": {"rules": "replicate"},
        "loop": {"log_steps": 1, "checkpoint_steps": 1},
        "checkpoint": {"keep": 2},
        **changes,
    }


def awake(net, seed=0):
    """A network and parameters in which nothing is zero any more."""
    rng = np.random.default_rng(seed)
    return net, jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) * 0.3).astype(leaf.dtype), net.abstract())
