"""The numbers of a run over its steps, a panel for each, as one SVG."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

ACROSS = 3  # panels in a row
ASIDE = ("step", "time", "first_step/seconds")  # no curves
SPREAD = 50  # a largest value this many times the smallest is drawn on a logarithmic axis


def curves(rows: Sequence[Mapping[str, Any]], starts: Sequence[int] = ()) -> str:
    """SVG of every scalar of `rows` ({"step": .., name: value or None}); dotted lines where the run went on.

    Raises ValueError if there is nothing to draw.
    """
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in ASIDE]
    if not names:
        raise ValueError("no metric was written yet: there is no curve to draw")
    down = -(-len(names) // ACROSS)
    drawing = Figure(figsize=(4 * ACROSS, 2.6 * down), layout="constrained")
    FigureCanvasSVG(drawing)
    panels = drawing.subplots(down, ACROSS, squeeze=False).ravel()
    for panel, name in zip(panels, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        panel.plot(*zip(*points, strict=True), ".-", ms=3, lw=1) if points else panel.set_axis_off()
        values = [value for _, value in points]
        if values and min(values) > 0 and max(values) > SPREAD * min(values):
            panel.set_yscale("log")
        for start in starts:
            panel.axvline(start, color="gray", lw=0.8, ls=":")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    out = io.StringIO()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]
