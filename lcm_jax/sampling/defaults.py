"""The steps and the w to begin with, by what a model.json says: those of a call that names none, and of model cards."""

from collections.abc import Mapping
from typing import Any


def default_steps(description: Mapping[str, Any]) -> int:
    """4 for a consistency model (fewer if it was trained at fewer times), 50 for a teacher.

    Of networks of noise levels 2 (or 1, without levels for more), and 18 for a denoiser (EDM Tab. 1).
    """
    student = description["role"] == "consistency"
    if "network" in description:
        return min(2, len(description["sigmas"])) if student else 18
    return min(4, description["original_steps"]) if student else 50


def default_w(description: Mapping[str, Any]) -> float:
    """The middle of the range a consistency model was trained on, 0 if it is told none.

    For a teacher 2, of Stable Diffusion's family 6.5.
    """
    if g := description["guidance"]:
        return (g["w_min"] + g["w_max"]) / 2
    if description["role"] == "consistency":
        return 0.0
    return 6.5 if description["text"]["encoder"] == "clip" else 2.0
