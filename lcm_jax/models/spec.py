"""What one must know of a text-to-image model besides its weights, as a JSON value."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.clip_text import ClipTextConfig
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
    """The caption encoder and the number of tokens the network was trained with.

    "clip" encoders travel with the model: one `tower` gives its last states (SD 1 and 2), two their penultimate
    ones side by side and the second's projected text (SDXL). Raises ValueError for another number of towers.
    """

    encoder: str = "minilm"
    length: int = 20
    towers: tuple[ClipTextConfig, ...] = ()
    zero_empty: bool = False  # the empty caption is all zeros (SDXL base)

    def __post_init__(self) -> None:
        if self.encoder == "clip" and not 1 <= len(self.towers) <= 2:
            raise ValueError(f"text.towers has {len(self.towers)} entries: clip takes one (SD) or two (SDXL)")
        if len(self.towers) == 2 and self.towers[1].projection is None:
            raise ValueError("text.towers: the second of two needs a projection, which makes the pooled text")


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
    autoencoder: AutoencoderConfig | TinyAutoencoderConfig
    path: PathSpec = PathSpec()
    text: TextSpec = TextSpec()
    guidance: GuidanceSpec | None = None
    spacing: Literal["trailing", "leading", "linspace"] = "trailing"  # of its scheduler file; ours trail
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
        return self.latents_of(self.image_size, self.image_size)

    @property
    def pooled_width(self) -> int | None:
        """Width of the pooled text that the U-Net takes beside size ids (SDXL); None for one that takes neither."""
        net = self.unet
        return None if net is None or net.added_width is None else net.added_width - 6 * net.added_time_width

    def latents_of(self, height: int, width: int) -> tuple[int, int, int]:
        """[h, w, c] of the latent of a picture; ValueError for sides that the autoencoder cannot shrink."""
        factor = self.autoencoder.factor
        if min(height, width) < 1 or height % factor or width % factor:
            raise ValueError(f"pictures of {height} x {width} are no multiple of {factor} pixels: choose another size")
        return height // factor, width // factor, self.autoencoder.latent_channels

    def computing_in(self, dtype: str) -> "ModelSpec":
        """The same model with its U-Net computing in `dtype`."""
        if self.unet is None:
            return self
        return dataclasses.replace(self, unet=dataclasses.replace(self.unet, dtype=dtype))

    def to_json(self) -> dict[str, Any]:
        """A JSON value that `from_json` reads back."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @staticmethod
    def from_json(value: dict[str, Any], source: str = "model.json") -> "ModelSpec":
        """The spec written by `to_json`; raises what `read` does."""
        return read(ModelSpec, value, source)


def read(cls: type, value: dict[str, Any], source: str) -> Any:
    """The spec a JSON object describes; ValueError names an unknown key, a missing one or a newer format."""
    value = dict(value)
    if (found := value.pop("format", None)) != FORMAT:
        raise ValueError(f"{source} has format {found}, this version reads {FORMAT}: export the model again")
    return build(cls, value, source)


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
    if isinstance(value, dict) and (classes := [c for c in choices if dataclasses.is_dataclass(c)]):
        fits = [c for c in classes if value.keys() <= {f.name for f in dataclasses.fields(c)}]
        return build((fits or classes)[0], value, source)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_typed(typing.get_args(hint)[0], v, f"{source}[{i}]") for i, v in enumerate(value))
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
