"""The composition root: turns a config into a run's parts, or says what is wrong."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lcm_jax.assembly import Run, assemble, owing
from lcm_jax.build_captioned import latent_run
from lcm_jax.build_edm import edm_run
from lcm_jax.data import attribution
from lcm_jax.data.image_loader import make_image_loader
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.spec import ModelSpec
from lcm_jax.models.spec import build as build_dataclass
from lcm_jax.sections import build_objective, own_rows_of, plain, takes
from lcm_jax.settings import call


def run(config: ConfigDict | Mapping[str, Any]) -> Run:
    """The parts of the run a config describes.

    Raises ValueError or FileNotFoundError, naming the key or the file, before anything compiles.
    """
    cfg = plain(config)
    name = cfg["objective"]["name"]
    if name == "autoencoder":
        return autoencoder_run(cfg)
    return latent_run(cfg) if takes(name, "kind") else edm_run(cfg)


def autoencoder_run(cfg: dict[str, Any]) -> Run:
    """The parts of a run that trains an autoencoder on images."""
    if isinstance(cfg["model"], dict):
        sizes = build_dataclass(AutoencoderConfig, cfg["model"], "config.model")
    else:
        sizes = presets.named(presets.AUTOENCODERS, cfg["model"])
    spec = ModelSpec("autoencoder", "v", cfg["data"]["image_size"], None, sizes)
    spec = owing(spec, [attribution(cfg["data"]["reader_name"])])
    objective = build_objective(cfg["objective"])
    loader = call(make_image_loader, "config.data", cfg["data"], seed=cfg["seed"], own=own_rows_of(cfg))
    frozen = {"teacher": None, "batch": {}}
    return assemble(cfg, spec, {}, "autoencoder", ("image",), loader, objective, autoencoder(sizes), None, frozen, None)
