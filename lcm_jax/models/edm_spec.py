"""What one must know of a network of noise levels besides its weights, as a JSON value."""

import dataclasses
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from lcm_jax.models.adm import ADMConfig
from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.dit import DiTConfig
from lcm_jax.models.spec import FORMAT, read


@dataclass(frozen=True)
class EDMSpec:
    """A denoiser ("diffusion") or a consistency model of VE noise, read by EDM's preconditioning (EDM Tab. 1).

    Its latents are those of the autoencoder less their mean and divided by their std, times `sigma_data`; both are
    arrays beside the weights (models.latent_statistics). Raises ValueError for a network that does not fit the
    autoencoder, names that are not one a class, scales that are not positive, and noise levels that do not fall from
    `sigma_max` to above `sigma_min`.
    """

    role: Literal["diffusion", "consistency"]
    image_size: int  # pixels
    network: ADMConfig | DiTConfig
    autoencoder: AutoencoderConfig | TinyAutoencoderConfig
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0  # of the grid between them (EDM eq. 5)
    time_scale: float = 250.0  # of ln sigma, as the network is told it
    sigmas: tuple[tuple[float, ...], ...] = ((80.0,), (80.0, 0.5286))  # of sampling in 1, 2, ... steps
    classes: tuple[str, ...] = ()  # their names, label by label; of a network that is told labels and is trained
    no_label: bool = False  # whether it learned pictures without a label, whose number is that of the classes
    about: dict[str, Any] = field(default_factory=dict)  # licence, attribution, how it was trained

    def __post_init__(self) -> None:
        factor, side = self.autoencoder.factor, self.network.side
        if self.image_size != side * factor or self.network.in_channels != self.autoencoder.latent_channels:
            made = f"{self.image_size // factor} x {self.image_size // factor} x {self.autoencoder.latent_channels}"
            raise ValueError(
                f"the network takes latents of {side} x {side} x {self.network.in_channels}, the autoencoder makes "
                f"{made} of pictures of {self.image_size} pixels: choose another config.model.network"
            )
        if self.network.classes < 0:
            raise ValueError(f"classes is {self.network.classes}: give how many there are, 0 for a network without")
        if len(self.classes) not in (0, self.network.classes):
            raise ValueError(f"classes are {len(self.classes)} names, the network has {self.network.classes} classes")
        for scale in ("sigma_data", "rho", "time_scale"):
            if not getattr(self, scale) > 0:
                raise ValueError(f"{scale} is {getattr(self, scale)}: give a positive number, that of the training")
        if not 0 <= self.sigma_min < self.sigma_max:
            given = f"sigma_min is {self.sigma_min}, sigma_max {self.sigma_max}"
            raise ValueError(f"{given}: give noise levels that rise from 0 or more")
        for n, levels in enumerate(self.sigmas, 1):
            falls = all(after < before for before, after in pairwise((*levels, self.sigma_min)))
            if len(levels) != n or not falls or levels[0] > self.sigma_max:
                raise ValueError(
                    f"sigmas[{n - 1}] is {list(levels)}: give {n} noise levels that fall from at most "
                    f"{self.sigma_max:g} to above {self.sigma_min:g}"
                )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, c] of one latent."""
        return self.network.side, self.network.side, self.network.in_channels

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(value: dict[str, Any], source: str = "model.json") -> "EDMSpec":
        """The spec written by `to_json`; raises what spec.read does."""
        return read(EDMSpec, value, source)
