"""What one must know of a text-to-image model besides its weights, as a JSON value."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.unet import UNetConfig

FORMAT = 1
PLAIN = {bool, int, float, str, types.NoneType}


@dataclass(frozen=True)
class PathSpec:
    """The beta schedule that made the noisy latents (diffusion.path.vp_path)."""

    schedule: str = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    T: int = 1000
    zero_terminal_snr: bool = False


@dataclass(frozen=True)
class TextSpec:
    """The caption encoder and the number of tokens the network was trained with."""

    encoder: str = "minilm"
    length: int = 20


@dataclass(frozen=True)
class GuidanceSpec:
    """The range of w a consistency model was trained on; w is LCM's, others' guidance scale is w + 1."""

    w_min: float
    w_max: float
    convention: Literal["cond + w (cond - uncond)"] = "cond + w (cond - uncond)"


@dataclass(frozen=True)
class ModelSpec:
    """A teacher ("diffusion": guided at sampling time), a student ("consistency": w is an input) or neither yet.

    Raises ValueError for eps prediction at zero terminal SNR, and an image size the autoencoder cannot halve.
    """

    role: Literal["autoencoder", "diffusion", "consistency"]
    kind: Literal["eps", "v", "x0"]
    image_size: int
    unet: UNetConfig | None  # None for an autoencoder alone
    autoencoder: AutoencoderConfig
    path: PathSpec = PathSpec()
    text: TextSpec = TextSpec()
    guidance: GuidanceSpec | None = None
    timestep_scaling: float = 10.0
    original_steps: int = 50
    steps: tuple[int, ...] = (1, 2, 4, 8)
    about: dict[str, Any] = field(default_factory=dict)  # licence, attribution, how it was trained

    def __post_init__(self) -> None:
        if self.kind == "eps" and self.path.zero_terminal_snr:
            raise ValueError("kind eps says nothing about x0 at zero terminal SNR: set kind to v or x0")
        if self.image_size < 1 or self.image_size % self.autoencoder.factor:
            raise ValueError(
                f"image_size {self.image_size} is no multiple of {self.autoencoder.factor}, by which the "
                "autoencoder shrinks pictures: choose another"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[h, w, c] of one latent."""
        side = self.image_size // self.autoencoder.factor
        return side, side, self.autoencoder.latent_channels

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(value: dict[str, Any], source: str = "model.json") -> "ModelSpec":
        """The spec written by `to_json`; ValueError names an unknown key, a missing one or a newer format."""
        value = dict(value)
        if (found := value.pop("format", None)) != FORMAT:
            raise ValueError(f"{source} has format {found}, this version reads {FORMAT}: export the model again")
        return build(ModelSpec, value, source)


def build(cls: type, value: dict[str, Any], source: str) -> Any:
    """A frozen dataclass from a JSON object, nested ones too; unknown and missing keys raise ValueError."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in value:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; it knows: {', '.join(fields)}"
            raise ValueError(f"{source} has an unknown key {key!r}{hint}")
    required = [f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING]
    if missing := [name for name in required if name not in value]:
        raise ValueError(f"{source} lacks {', '.join(missing)}")
    return cls(**{k: _typed(hints[k], v, f"{source}: {k}") for k, v in value.items()})


def _typed(hint: Any, value: Any, source: str) -> Any:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    choices = typing.get_args(hint) if union else (hint,)
    for choice in choices:
        if dataclasses.is_dataclass(choice) and isinstance(value, dict):
            return build(choice, value, source)
    if typing.get_origin(hint) is Literal and value not in choices_of(hint):
        raise ValueError(f"{source} is {value!r}; choose one of {', '.join(map(repr, choices_of(hint)))}")
    if float in choices and type(value) is int:
        return float(value)
    if PLAIN.issuperset(choices) and type(value) not in choices:
        wanted = " or ".join(choice.__name__ for choice in choices)
        raise ValueError(f"{source} is {value!r}, not of type {wanted}")
    return tuple(value) if isinstance(value, list) else value


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values a Literal allows."""
    return typing.get_args(hint)
