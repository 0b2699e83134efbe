"""The telemetry of a consistency run as one picture: losses, gradients, residuals, distance, curriculum, coupling."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def telemetry_figure(seen: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Writes the PNG of assess.telemetry.measure's values; it appears whole or not at all."""
    path = Path(path)
    drawing = Figure(figsize=(14, 10), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(3, 3).ravel()
    sigma = [level["t"] for level in seen["levels"]]
    line(panels[0], sigma, [level["loss"] for level in seen["levels"]], "loss by noise level")
    line(panels[1], sigma, [level["grad_norm"] for level in seen["levels"]], "gradient norm by noise level")
    tails(panels[2], seen["levels"])
    boxes(panels[3], sigma, [level["latent"] for level in seen["levels"]], "f(z_t, t) - f(z_s, s), latents")
    boxes(panels[4], sigma, [level["pixel"] for level in seen["levels"]], "the same decoded, of 255")
    for step, curve in seen["distance"].items():
        panels[5].loglog(curve["residual"], curve["value"], label=f"update {step}")
        panels[6].loglog(curve["residual"], curve["slope"], label=f"update {step}")
    titled(panels[5], "distance of a residual", "residual of every element")
    titled(panels[6], "its derivative", "residual of every element")
    panels[5].legend(fontsize=8)
    if seen["intervals"] is None:
        panels[7].set_axis_off()
    else:
        panels[7].step(seen["intervals"]["step"], seen["intervals"]["N"], where="post")
        panels[7].axvline(seen["step"], color="tab:red", lw=1)
        titled(panels[7], "intervals of the grid", "update")
    if seen["coupling"] is None:
        panels[8].set_axis_off()
    else:
        for name, away in seen["coupling"].items():
            panels[8].plot(away, label=f"noise as {name}")
        titled(panels[8], "|data - noise| over a batch, sorted", "pair")
        panels[8].legend(fontsize=8)
    drawing.suptitle(f"{seen['objective']['name']}, update {seen['step']} of {seen['steps']}")
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(scratch, format="png", dpi=100)
    scratch.replace(path)
    return path


def titled(panel: Any, title: str, below: str) -> None:
    """Words around a panel."""
    panel.set_title(title, fontsize=9)
    panel.set_xlabel(below, fontsize=8)
    panel.grid(alpha=0.3)


def line(panel: Any, sigma: Sequence[float], values: Sequence[float], title: str) -> None:
    """Values over noise levels."""
    panel.loglog(sigma, values, "o-", ms=4)
    titled(panel, title, "sigma")


def boxes(panel: Any, sigma: Sequence[float], quantiles: Sequence[Sequence[float]], title: str) -> None:
    """Box and whisker of every noise level: quartiles, 1 and 99 %, and the extremes as dots."""
    drawn = [
        {"whislo": q[1], "q1": q[2], "med": q[3], "q3": q[4], "whishi": q[5], "fliers": [q[0], q[6]]} for q in quantiles
    ]
    panel.bxp(drawn, positions=range(len(drawn)), flierprops={"marker": ".", "markersize": 4})
    panel.set_xticks(range(len(drawn)), [f"{level:.2g}" for level in sigma], rotation=60, fontsize=7)
    titled(panel, title, "sigma")


def tails(panel: Any, levels: Sequence[Mapping[str, Any]]) -> None:
    """How far the largest residual lies beyond the box, in latents and in pixels: what a robust loss is for."""
    for name in ("latent", "pixel"):
        reach = [max(abs(q[0]), abs(q[6])) / max(q[4] - q[2], 1e-12) for q in (level[name] for level in levels)]
        panel.loglog([level["t"] for level in levels], reach, "o-", ms=4, label=f"{name}s")
    titled(panel, "largest residual over the interquartile range", "sigma")
    panel.legend(fontsize=8)
