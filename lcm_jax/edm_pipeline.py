"""Pictures from noise alone: a network of noise levels as one compiled function from keys to uint8 pixels."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from lcm_jax.diffusion.boundary import EDMBoundary, consistency, edm_field
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.path import VE
from lcm_jax.drawers import Drawers
from lcm_jax.image_keys import Keys, image_keys
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.parallel.reading import Reading
from lcm_jax.pipeline import BATCH, Pixels, to_pixels
from lcm_jax.sampling import defaults, few_step, reference
from lcm_jax.sampling.schedule import Schedule, filled
from lcm_jax.source import image_networks, network, open_model
from lcm_jax.typing import Latent, Params

CONSISTENCY, HEUN = "consistency", "heun"
Labels = Int[np.ndarray | Array, " b"]
Draw = Callable[[dict[str, Params], Keys, Labels | None], Pixels]


class EDMPipeline:
    """A model of noise levels with its weights; call it for pictures, or use `sampler` for compiled sampling.

    `origin` says where the weights come from (JSON values, kept with the pictures); `read` how the network's layers
    read weights that devices hold in parts.
    """

    def __init__(
        self,
        spec: EDMSpec,
        params: dict[str, Params],
        origin: Mapping[str, Any] | None = None,
        read: Reading | None = None,
    ):
        self.spec, self.params, self.origin = spec, params, dict(origin or {})
        self.path, self.read = VE(), read
        self.network, self.autoencoder, self.statistics = (network(spec, name) for name in image_networks(spec))

    @classmethod
    def load(cls, source: str | os.PathLike) -> "EDMPipeline":
        """The model of a folder of launch.export; ValueError for one that takes captions (pipeline.Pipeline)."""
        model = open_model(source)
        if not isinstance(model.spec, EDMSpec):
            raise ValueError(f"{source} is no network of noise levels: open it with lcm_jax.pipeline.Pipeline")
        params = {name: model.load(name) for name in image_networks(model.spec)}
        return cls(model.spec, params, {"model": str(source), **model.trained})

    def __call__(
        self,
        n: int = 16,
        *,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        label: str | int | Sequence[int] | Labels | None = None,
        seed: int = 0,
        batch: int | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """n images, uint8 [n, H, W, 3]; the i-th of a seed is the same whatever else is drawn.

        `sigmas` are noise levels of a consistency model's steps, in the place of the model's own for `steps`.
        `label` is that of `labels`.
        Raises ValueError for impossible steps, noise levels or labels.
        """
        if n < 1:
            raise ValueError(f"nothing to draw: {n} images")
        told = {"steps": steps, "sigmas": sigmas, "label": label, "seed": seed, "batch": batch}
        with tqdm(total=n, unit="image", desc=self.name, disable=not progress, dynamic_ncols=True) as bar:
            return np.concatenate(list(self.stream(n, np.arange(n), **told, done=bar.update)))

    def stream(
        self,
        n: int,
        rows: Int[np.ndarray, " r"],
        *,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        label: str | int | Sequence[int] | Labels | None = None,
        seed: int = 0,
        batch: int | None = None,
        done: Callable[[int], object] = int,
    ) -> Iterator[np.ndarray]:
        """The images of these numbers among the n of a call, set by set, as many at a time as devices draw together."""
        draw, labels = self.sampler(steps, sigmas), self.labels(n, label)
        keys, size = image_keys([""], n, seed), self.drawers.size(batch or BATCH, len(rows))
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            told = (keys[some],) if labels is None else (keys[some], labels[some])
            yield self.drawers.map(partial(draw, self.drawers.params), told, size, done)

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
        """How many where a call names none; see sampling.defaults."""
        return defaults.default_steps(self.spec.to_json())

    @property
    def usual_steps(self) -> tuple[int, ...]:
        """The steps that are compared: every number that a consistency model has levels for; 18 and 40 of EDM."""
        return tuple(range(1, len(self.spec.sigmas) + 1)) if self.spec.role == "consistency" else (18, 40)

    def labels(self, n: int, label: str | int | Sequence[int] | Labels | None = None) -> np.ndarray | None:
        """Numbers of the classes of n pictures, int32 [n]; None for a network that is told none.

        `label` is the name or the number of a class, or a number a picture; without it every class has its turn. The
        number after the last class means none of them, of a model that learned so (by `label_drop`, say).
        Raises ValueError for a class that is not there.
        """
        names, count = self.spec.classes, self.spec.network.classes
        if not count:
            if label is not None:
                raise ValueError(f"label is {label!r}, but this model was trained without labels: leave it out")
            return None
        if isinstance(label, str):
            if label not in names and not label.isdecimal():
                few = ", ".join(names[:20]) + (", ..." if count > 20 else "")
                raise ValueError(f"unknown label {label!r}; choose a number up to {count - 1}, or one of {few}")
            label = names.index(label) if label in names else int(label)
        found = np.arange(n) % count if label is None else np.asarray(label)
        if found.ndim and len(found) != n:
            raise ValueError(f"{len(found)} labels were given for {n} pictures: give one label, or one a picture")
        if found.min() < 0 or found.max() > count:
            none = f" ({count}: none of the classes)" if self.spec.no_label else ""
            raise ValueError(f"a label is outside 0..{count - 1}{none}")
        if found.max() == count and not self.spec.no_label:
            raise ValueError(f"label {count} is none of the classes, but this model learned all pictures with theirs")
        return np.broadcast_to(found, n).astype(np.int32)

    def names(self, labels: Labels) -> list[str]:
        """What the classes of labels are called; "no label" is none of them."""
        names = (*self.spec.classes, "no label")
        return [names[int(label)] for label in labels]

    def told(self, labels: np.ndarray | None) -> dict[str, Any]:
        """Labels as pictures remember them: one name where all are the same."""
        if labels is None:
            return {}
        names = self.names(labels)
        return {"label": names[0] if len(set(names)) == 1 else names}

    def times(self, steps: int | None = None, sigmas: Sequence[float] | None = None) -> np.ndarray:
        """The falling noise levels of a sample; ValueError if there cannot be as many."""
        spec = self.spec
        if steps is None and sigmas is None:
            steps = self.default_steps
        if self.name == HEUN:
            if sigmas is not None:
                raise ValueError("noise levels are chosen for a consistency model; a denoiser takes steps")
            return reference.edm_times(steps, Karras(spec.sigma_min, spec.sigma_max, spec.rho))
        if sigmas is None:
            if not 1 <= steps <= len(spec.sigmas):
                raise ValueError(
                    f"this model has noise levels for 1 to {len(spec.sigmas)} steps, not {steps}: give them as sigmas"
                )
            sigmas = spec.sigmas[steps - 1]
        elif steps not in (None, len(sigmas)):
            raise ValueError(f"{len(sigmas)} noise levels are as many steps, not {steps}: leave steps out")
        few_step.check_falling(sigmas, spec.sigma_min)
        if not sigmas[0] <= spec.sigma_max:
            raise ValueError(f"noise level {sigmas[0]:g} is above {spec.sigma_max:g}, the highest that was trained")
        return np.array(sigmas, np.float32)

    def nfe(self, steps: int) -> int:
        """Network evaluations of one image."""
        return steps if self.name == CONSISTENCY else reference.nfe(HEUN, steps, guided=False)

    def sampler(self, steps: int | None = None, sigmas: Sequence[float] | None = None) -> Draw:
        """The compiled draw(params, keys [b], labels [b]) -> uint8 pixels; compiled once for all noise levels."""
        return partial(self._compiled, filled(self.times(steps, sigmas)))

    @cached_property
    def _compiled(self) -> Callable[..., Pixels]:
        return jax.jit(self.draw)

    def draw(
        self, schedule: Schedule, params: dict[str, Params], keys: Keys, labels: Labels | None = None
    ) -> Pixels:
        """A picture a key. To be compiled."""
        noise = few_step.fresh(keys, self.spec.latent_shape)
        return to_pixels(self.decode(params, self.latents(schedule, params["network"], noise, labels)))

    def latents(
        self, schedule: Schedule, params: Params, noise: few_step.StepNoise, labels: Labels | None = None
    ) -> Latent:
        """Latents at sigma_data by multistep consistency sampling (CM Alg. 1), or Heun's trajectory (EDM Alg. 1)."""
        spec = self.spec
        told = partial(self.network.apply, params, labels=labels, read=self.read)
        field = edm_field(self.path, told, spec.sigma_data, spec.time_scale)
        if self.name == HEUN:
            return reference.sample(HEUN, self.path, field, noise(0), *schedule)
        f = consistency(self.path, EDMBoundary(spec.sigma_min, spec.sigma_data), field)
        return few_step.sample(f, self.path, noise, *schedule, sigma_min=spec.sigma_min)

    def decode(self, params: dict[str, Params], z: Latent) -> Float[Array, "b h w 3"]:
        """Latents at sigma_data to images in [-1, 1]."""
        raw = self.statistics.apply(params["statistics"], z)
        return self.autoencoder.apply(params["autoencoder"], jnp.asarray(raw), method="decode")
