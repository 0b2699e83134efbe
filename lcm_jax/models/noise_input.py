"""What every network of noise levels is given, checked."""

from typing import Any

from jaxtyping import Array


def check_input(cfg: Any, x: Array, labels: Array | None) -> None:
    """Raises ValueError for an image [b, h, w, c] of another size than `cfg`'s, and labels too many or missing."""
    if x.shape[1:] != (cfg.side, cfg.side, cfg.in_channels):
        raise ValueError(f"image is {x.shape[1:]}, this network takes {(cfg.side, cfg.side, cfg.in_channels)}")
    if (labels is not None) != bool(cfg.classes):
        raise ValueError(f"this network has {cfg.classes} classes and {'takes' if cfg.classes else 'no'} labels")
