"""Pictures from noise alone: a network of noise levels as one compiled function from keys to uint8 pixels."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from lcm_jax.diffusion.boundary import EDMBoundary, consistency, edm_field
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.path import VE
from lcm_jax.drawers import Drawers
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.pipeline import BATCH, Keys, Noise, Pixels, image_keys, to_pixels
from lcm_jax.sampling import few_step, reference
from lcm_jax.source import image_networks, network, open_model
from lcm_jax.typing import Latent, Params

CONSISTENCY, HEUN = "consistency", "heun"
Draw = Callable[[dict[str, Params], Keys], Pixels]
Levels = Float[np.ndarray | Array, " n"]


class EDMPipeline:
    """A model of noise levels with its weights; call it for pictures, or use `sampler` for compiled sampling.

    `origin` says where the weights come from (JSON values, kept with the pictures).
    """

    def __init__(self, spec: EDMSpec, params: dict[str, Params], origin: Mapping[str, Any] | None = None):
        self.spec, self.params, self.origin = spec, params, dict(origin or {})
        self.path = VE()
        self.network, self.autoencoder, self.statistics = (network(spec, name) for name in image_networks(spec))
        self._compiled: dict[int, Callable[..., Pixels]] = {}

    @classmethod
    def load(cls, source: str | os.PathLike) -> "EDMPipeline":
        """The model of a folder of launch.export; ValueError for one that takes captions (pipeline.Pipeline)."""
        model = open_model(source)
        if not isinstance(model.spec, EDMSpec):
            raise ValueError(f"{source} is no network of noise levels: open it with lcm_jax.pipeline.Pipeline")
        return cls(model.spec, {name: model.load(name) for name in image_networks(model.spec)}, {"model": str(source)})

    def __call__(
        self,
        n: int = 16,
        *,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        seed: int = 0,
        batch: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """n images, uint8 [n, H, W, 3]; the i-th of a seed is the same whatever else is drawn.

        `sigmas` are noise levels of a consistency model's steps, in the place of the model's own for `steps`.
        Raises ValueError for impossible steps or noise levels.
        """
        if n < 1:
            raise ValueError(f"nothing to draw: {n} images")
        draw = self.sampler(steps, sigmas)
        keys = image_keys([""], n, seed)
        size = self.drawers.size(batch or BATCH, n)
        with tqdm(total=n, unit="image", desc=self.name, disable=not progress, dynamic_ncols=True) as bar:
            return self.drawers.map(partial(draw, self.drawers.params), (keys,), size, bar.update)

    @cached_property
    def drawers(self) -> Drawers:
        """The devices that draw, with the weights."""
        return Drawers(self.params)

    @property
    def name(self) -> str:
        """How it is sampled: "consistency", or "heun" for a denoiser."""
        return CONSISTENCY if self.spec.role == "consistency" else HEUN

    @property
    def default_steps(self) -> int:
        """As many as a consistency model has noise levels for, at most 2; 18 for a denoiser (EDM Tab. 1)."""
        return min(2, len(self.spec.sigmas)) if self.spec.role == "consistency" else 18

    @property
    def usual_steps(self) -> tuple[int, ...]:
        """The steps that are compared: every number that a consistency model has levels for; 18 and 40 of EDM."""
        return tuple(range(1, len(self.spec.sigmas) + 1)) if self.spec.role == "consistency" else (18, 40)

    def times(self, steps: int | None = None, sigmas: Sequence[float] | None = None) -> np.ndarray:
        """The falling noise levels of a sample; ValueError if there cannot be as many."""
        spec = self.spec
        if self.name == HEUN:
            if sigmas is not None:
                raise ValueError("noise levels are chosen for a consistency model; a denoiser takes steps")
            return reference.edm_times(steps or self.default_steps, Karras(spec.sigma_min, spec.sigma_max, spec.rho))
        if sigmas is None:
            steps = self.default_steps if steps is None else steps
            if not 1 <= steps <= len(spec.sigmas):
                raise ValueError(
                    f"this model has noise levels for 1 to {len(spec.sigmas)} steps, not {steps}: give them as sigmas"
                )
            sigmas = spec.sigmas[steps - 1]
        elif steps not in (None, len(sigmas)):
            raise ValueError(f"{len(sigmas)} noise levels are as many steps, not {steps}: leave steps out")
        few_step.check_falling(sigmas, spec.sigma_min)
        return np.array(sigmas, np.float32)

    def nfe(self, steps: int) -> int:
        """Network evaluations of one image."""
        return steps if self.name == CONSISTENCY else reference.nfe(HEUN, steps, guided=False)

    def sampler(self, steps: int | None = None, sigmas: Sequence[float] | None = None) -> Draw:
        """The compiled draw(params, keys [b]) -> uint8 pixels, compiled once for every number of noise levels."""
        times = self.times(steps, sigmas)
        if len(times) not in self._compiled:
            self._compiled[len(times)] = jax.jit(self.draw)
        return partial(self._compiled[len(times)], times)

    def draw(self, times: Levels, params: dict[str, Params], keys: Keys) -> Pixels:
        """A picture a key. To be compiled."""
        count = len(times) if self.name == CONSISTENCY else 1
        noise = few_step.draws(keys, count, self.spec.latent_shape)
        return to_pixels(self.decode(params, self.latents(times, params["network"], noise)))

    def latents(self, times: Levels, params: Params, noise: Noise) -> Latent:
        """Latents at sigma_data by multistep consistency sampling (CM Alg. 1), or Heun's trajectory (EDM Alg. 1)."""
        spec = self.spec
        field = edm_field(self.path, partial(self.network.apply, params), spec.sigma_data, spec.time_scale)
        if self.name == HEUN:
            return reference.sample(HEUN, self.path, field, noise[0], times)
        f = consistency(self.path, EDMBoundary(spec.sigma_min, spec.sigma_data), field)
        return few_step.sample(f, self.path, noise, times, sigma_min=spec.sigma_min)

    def decode(self, params: dict[str, Params], z: Latent) -> Float[Array, "b h w 3"]:
        """Latents at sigma_data to images in [-1, 1]."""
        raw = self.statistics.apply(params["statistics"], z)
        return self.autoencoder.apply(params["autoencoder"], jnp.asarray(raw), method="decode")
