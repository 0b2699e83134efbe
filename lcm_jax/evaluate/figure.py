"""Scores against network evaluations as a figure: a line a sampler, bars for intervals, the controls across."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lcm_jax.evaluate.report import NAMES, PERCENT

SHOWN = ("kid", "fd", "top5")
ACROSS = {  # controls drawn as lines
    "floor": ("black", "real training images"),
    "autoencoder": ("tab:gray", "real, through the autoencoder"),
    "blurred_floor": ("tab:red", "real training images, 1 px blur"),
}


def figure(result: Mapping[str, Any], path: str | os.PathLike) -> Path:
    """Writes the PNG: a row of panels for each split with generated images; it appears whole or not at all."""
    path = Path(path)
    generated = [e for e in result["entries"] if e["who"] != "control"]
    splits = [s for s in result["references"] if any(e["split"] == s for e in generated)]
    if not splits:
        raise ValueError("nothing was generated yet: there is no line to draw")
    drawing = Figure(figsize=(4.6 * len(SHOWN), 3.6 * len(splits)), layout="constrained")
    FigureCanvasAgg(drawing)
    panels = drawing.subplots(len(splits), len(SHOWN), squeeze=False)
    for row, split in zip(panels, splits, strict=True):
        for panel, name in zip(row, SHOWN, strict=True):
            _panel(panel, [e for e in result["entries"] if e["split"] == split], name)
            panel.set_title(f"{split}, n = {result['references'][split]['n']}", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(scratch, format="png", dpi=110)
    scratch.replace(path)
    return path


def _panel(panel: Any, entries: list[Mapping[str, Any]], name: str) -> None:
    factor = 100 if name in PERCENT else 1000 if name.startswith("kid") else 1
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if entry["who"] != "control":
            label = f"{entry['who']} {entry['sampler']}, w = {entry['w']:g}"
            lines.setdefault(label, []).append(entry)
    for label, points in lines.items():
        points = sorted(points, key=lambda e: e["nfe"])
        scores = [e["scores"][name] for e in points]
        y = [s["mean"] * factor for s in scores]
        reach = [[max(0.0, y[i] - s["interval"][0] * factor) for i, s in enumerate(scores)],
                 [max(0.0, s["interval"][1] * factor - y[i]) for i, s in enumerate(scores)]]  # fmt: skip
        style = "o-" if label.startswith("student") else "s--"
        panel.errorbar([e["nfe"] for e in points], y, reach, fmt=style, label=label, capsize=2, ms=4, lw=1.2)
    for entry in entries:
        if entry["who"] == "control" and entry["name"] in ACROSS and name in entry["scores"]:
            colour, label = ACROSS[entry["name"]]
            panel.axhline(entry["scores"][name]["mean"] * factor, color=colour, ls=":", lw=1.2, label=label)
    panel.set_xscale("log", base=2)
    panel.set_xlabel("network evaluations per image", fontsize=8)
    panel.set_ylabel(f"{NAMES[name]}{' (%)' if name in PERCENT else ''}", fontsize=8)
    panel.grid(alpha=0.3)
