"""Published weights that come alone, as model folders of this project."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lcm_jax.export import flax_folder
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig, original_name
from lcm_jax.models.spec import ModelSpec
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.safetensors_file import SafetensorsFile

TAESD = "TAESD (c) 2023 Ollin Boer Bohan, MIT licence, github.com/madebyollin/taesd"


def tiny_autoencoder(
    encoder: str | os.PathLike, decoder: str | os.PathLike, out: str | os.PathLike, image_size: int = 512
) -> Path:
    """A model folder of TAESD's original encoder and decoder files, for pictures of `image_size` pixels a side.

    Raises FileNotFoundError or ValueError naming the file that is not one of them.
    """
    files = {"encoder": SafetensorsFile(encoder), "decoder": SafetensorsFile(decoder)}
    tensors: Mapping[str, np.ndarray] = {f"{side}.{key}": file[key] for side, file in files.items() for key in file}
    last = "encoder.14.weight"
    if last not in tensors:
        raise ValueError(f"{encoder} has no {last.removeprefix('encoder.')}: give TAESD's encoder as published")
    config = TinyAutoencoderConfig(latent_channels=len(tensors[last]))
    abstract = autoencoder(config).abstract()
    try:
        params = from_torch(tensors, abstract, rename=original_name)
    except ValueError as error:
        raise ValueError(f"{encoder} and {decoder}: {error}") from None
    spec = ModelSpec("autoencoder", "eps", image_size, None, config, about={"autoencoder": TAESD})
    return flax_folder.write(out, spec.to_json(), {"autoencoder": params}, None)
