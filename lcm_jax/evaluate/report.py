"""Scores as Markdown: the settings, the controls beside them and the ratios."""

from collections.abc import Mapping, Sequence
from typing import Any

from lcm_jax.evaluate.frechet_name import frechet_name, why

NAMES = {
    "fd": "FD",
    "kid": "KID x 1000",
    "fd_train": "FD to train",
    "kid_train": "KID to train x 1000",
    "precision": "precision",
    "recall": "recall",
    "top1": "top-1 caption",
    "top5": "top-5 caption",
    "top5_of_n": "top-5 caption of n",
    "top1_group": "top-1 base",
    "top5_group": "top-5 base",
    "copies": "copies",
}
PERCENT = ("precision", "recall", "top1", "top5", "top5_of_n", "top1_group", "top5_group", "copies")
CONTROLS = {
    "floor": "real training images (the floor)",
    "halves": "halves of the real images, n / 2",
    "autoencoder": "real, through the autoencoder",
    "blur": "real, blurred by 1 px",
    "blurred_floor": "real training images, blurred by 1 px",
}


def markdown(result: Mapping[str, Any]) -> str:
    """The tables of one evaluation.json, a section for each split."""
    protocol, entries = result["protocol"], result["entries"]
    features = protocol["features"]["name"]
    n = min((about["n"] for about in result["references"].values()), default=0)
    lines = [
        f"# Scores on {features} features",
        "",
        f"FD is {frechet_name(features, n, n)} ({why(features, n, n)}), comparable only at equal n and features. "
        "In brackets: 95 % intervals over "
        f"groups of near-copies, {protocol['resamples']} resamples; +- is the spread over seeds. "
        "KID has mean 0 for equal laws; FD does not, so only its excess over the floor means anything.",
    ]
    for split, about in result["references"].items():
        rows = [e for e in entries if e["split"] == split]
        lines += ["", f"## {split}: n = {about['n']} images, retrieved among {about['gallery']}", ""]
        lines += table(
            ["model", "sampler", "steps", "w", "evaluations", *NAMES.values()],
            [[*_who(e), *(cell(e["scores"], name) for name in NAMES)] for e in rows],
        )
        lines += ["", _chance(about)]
    if result["ratios"]:
        lines += ["", "## Student over teacher", ""]
        lines += table(
            [
                *("split", "student", "teacher", "sampler", "score", "ratio", "wanted", "holds", "whole interval"),
                "blurred control",
            ],
            [_ratio(row) for row in result["ratios"]],
        )
    return "\n".join(lines) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, columns padded so that it reads well as text."""
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    line = lambda row: "| " + " | ".join(str(c).ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
    return [line(head), line(["-" * w for w in widths]), *map(line, rows)]


def number(value: float, name: str) -> str:
    """A score in its usual unit: percent, thousandths of a KID, FD with one digit."""
    if name in PERCENT:
        return f"{100 * value:.1f} %"
    return f"{1000 * value:.2f}" if name.startswith("kid") else f"{value:.1f}"


def _who(entry: Mapping[str, Any]) -> list[str]:
    if entry["who"] == "control":
        return [CONTROLS[entry["name"]], "", "", "", "0"]
    return [entry["who"], entry["sampler"], str(entry["steps"]), f"{entry['w']:g}", str(entry["nfe"])]


def cell(scores: Mapping[str, Any], name: str) -> str:
    """One score with its spread and its interval, "" where it was not taken."""
    if name not in scores:
        return ""
    score = scores[name]
    text = number(score["mean"], name)
    if score["spread"] is not None:
        text += f" +- {number(score['spread'], name).removesuffix(' %')}"
    if score["interval"] is not None:
        text += " [{}, {}]".format(*(number(v, name).removesuffix(" %") for v in score["interval"]))
    return text


def _chance(about: Mapping[str, Any]) -> str:
    guesses = ", ".join(f"{NAMES[name]} {number(rate, name)}" for name, rate in about["chance"].items())
    own = about["own"]
    return (
        f"Chance: {guesses}. A copy is as near to a training image as half of all images are to their own "
        f"reconstruction; {number(own['copies'], 'copies')} of the real images are, to one that is not their own."
    )


def _ratio(row: Mapping[str, Any]) -> list[str]:
    ratio = "undefined" if row["ratio"] is None else f"{row['ratio']:.3f}"
    if row["interval"] is not None:
        ratio += " [{:.3f}, {:.3f}]".format(*row["interval"])
    answer = {True: "yes", False: "no", None: "-"}
    control = {True: "fails, as it must", False: "PASSES", None: "-"}[row["blur_fails"]]
    if row["blur_fails"] is not None and row["blur_ratio"] is not None:
        control += f" ({row['blur_ratio']:.2f})"
    wanted = f"{'>=' if row['at_least'] else '<='} {row['limit']:g}"
    holds = [answer[row["holds"]], answer[row["holds_in_interval"]]]
    name = NAMES.get(row["statistic"], "FD - floor").removesuffix(" x 1000")
    return [row["split"], row["ours"], row["theirs"], row["sampler"], name, ratio, wanted, *holds, control]
