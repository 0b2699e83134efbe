"""The telemetry of a consistency run as one picture: losses, gradients, residuals, distances, curriculum, coupling."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def telemetry_figure(seen: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Writes the PNG of assess.telemetry.measure's values; it appears whole or not at all."""
    path = Path(path)
    drawing = Figure(figsize=(14, 13), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(4, 3).ravel()
    sigma = [level["t"] for level in seen["levels"]]
    line(panels[0], sigma, [level["loss"] for level in seen["levels"]], "loss by noise level")
    line(panels[1], sigma, [level["grad_norm"] for level in seen["levels"]], "gradient norm by noise level")
    tails(panels[2], seen["levels"])
    boxes(panels[3], sigma, [level["latent"] for level in seen["levels"]], "f(z_t, t) - f(z_s, s), latents")
    boxes(panels[4], sigma, [level["pixel"] for level in seen["levels"]], "the same decoded, of 255")
    coupling(panels[5], seen["coupling"])
    own = {f"update {step}": curve for step, curve in seen["distance"].items()}
    curves(panels[6:8], own, "distance of a residual")
    over_run(panels[8], seen["scale"], "delta", "scale of the distance (c)", seen["step"])
    curves(panels[9:11], seen["compared"], f"distances at the scale of update {seen['step']}, alike where small")
    over_run(panels[11], seen["intervals"], "N", "intervals of the grid", seen["step"])
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


def curves(panels: Any, found: Mapping[str, Mapping[str, Any]] | None, title: str) -> None:
    """Distances over residuals, and their derivatives beside them; nothing where there are none."""
    for panel, what, words in zip(panels, ("value", "slope"), (title, "derivative by the residual"), strict=True):
        if found is None:
            panel.set_axis_off()
            continue
        for name, curve in found.items():
            panel.loglog(curve["residual"], curve[what], label=name)
        titled(panel, words, "residual of every element")
        panel.legend(fontsize=8)


def over_run(panel: Any, found: Mapping[str, Any] | None, name: str, title: str, now: int) -> None:
    """What follows the training step, with a line at the present one; nothing where nothing does."""
    if found is None:
        panel.set_axis_off()
        return
    panel.step(found["step"], found[name], where="post")
    panel.set_yscale("log")
    panel.axvline(now, color="tab:red", lw=1)
    titled(panel, title, "update")


def coupling(panel: Any, found: Mapping[str, Sequence[float]] | None) -> None:
    """Distances of data to its noise before and after coupling; nothing where noise stays as it is drawn."""
    if found is None:
        panel.set_axis_off()
        return
    for name, away in found.items():
        panel.plot(away, label=f"noise as {name}")
    titled(panel, "|data - noise| over a batch, sorted", "pair")
    panel.legend(fontsize=8)
