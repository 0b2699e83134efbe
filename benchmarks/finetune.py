"""What latent consistency fine-tuning buys on pictures with their own look, without a teacher (LCM sec. 4.4).

    python -m launch.encode --reader twemoji --options grayscale=true --model emoji-teacher --out data/emoji_grayscale
    python -m benchmarks.finetune --start runs/quickstart/exported --limit 420

Scores the model before and after on captions of that set: those it was fine-tuned on, and the held-out tenth.
The gain is the share of the excess over the real-against-real floor that fine-tuning takes away, with an interval
from resampling base emoji. On held-out captions, copying shows as a nearest training image.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results, training
from configs import emoji_grayscale_lcf
from lcm_jax import run_folder
from lcm_jax.assess import evaluation, evaluation_set, feature_networks
from lcm_jax.assess.evaluation_plan import Plan
from lcm_jax.assess.evaluation_set import SPLITS
from lcm_jax.data.example import HELDOUT
from lcm_jax.evaluate import grid, report
from lcm_jax.pipeline import Pipeline

METRICS = ("kid", "fd")
CONTROLS = ("floor", "blurred_floor", "blur", "autoencoder")
SHOWN = 8  # captions in the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, help="exported consistency model")
    parser.add_argument("--data", default="data/emoji_grayscale")
    parser.add_argument("--tag", help="only the examples that carry it, such as flag")
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--w", type=float, default=1.0)
    parser.add_argument("--limit", type=int, help="images a split")
    parser.add_argument("--out", default="runs/finetune")
    args = parser.parse_args()

    config = emoji_grayscale_lcf.get_config()
    config.steps = args.updates
    config.data.update(folder=args.data, tag=args.tag)
    config.model.start = args.start
    config.loop.sample_steps = 0
    out = Path(args.out)
    training.train(config, out / "run")
    before, after = Pipeline.load(args.start), run_folder.pipeline(out / "run")

    found, uncond = evaluation_set.open_folder(args.data, None, {}, before.spec, args.tag)
    net = feature_networks.feature_network("mobilenetv2")
    values = {"protocol": vars(args), "splits": {}}
    for split in SPLITS:
        plan = Plan(steps=(args.steps,), w=(args.w,), seeds=(0, 1, 2), splits=(split,), limit=args.limit)
        scored = {
            name: evaluation.evaluate(pipe, None, found, uncond, net, plan, out / split / name)
            for name, pipe in (("before", before), ("after", after))
        }
        values["splits"][split] = {
            "real": scored["after"]["references"][split],
            "before": student(scored["before"])["scores"],
            "after": student(scored["after"])["scores"],
            **{name: control(scored["after"], name)["scores"] for name in CONTROLS},
            "gain": {metric: gain(out / split, scored, metric) for metric in METRICS},
        }
    path = results.save("finetune", values)
    print(table(values["splits"]))
    print(picture(before, after, found, path.with_suffix(".png"), args))


def student(result: dict[str, Any]) -> dict[str, Any]:
    """The one generated entry."""
    (entry,) = (e for e in result["entries"] if e["who"] == "student")
    return entry


def control(result: dict[str, Any], name: str) -> dict[str, Any]:
    """A control's entry."""
    (entry,) = (e for e in result["entries"] if e["who"] == "control" and e["name"] == name)
    return entry


def gain(out: Path, scored: dict[str, Any], metric: str) -> dict[str, Any]:
    """1 - (after - floor) / (before - floor), and its 95 % interval over resamples of groups."""
    entries = [(name, student(scored[name])) for name in ("before", "after")]
    entries.append(("after", control(scored["after"], "floor")))
    draws = [np.load(out / name / evaluation.RESAMPLED / f"{entry['key']}.npz")[metric] for name, entry in entries]
    point = [entry["scores"][metric]["mean"] for _, entry in entries]
    share = lambda before, after, floor: 1 - (after - floor) / (before - floor)
    low, high = np.quantile(share(*draws), [0.025, 0.975])
    return {"value": share(*point), "interval": [float(low), float(high)], "floor": point[-1]}


def table(splits: dict[str, Any]) -> str:
    """Before, after, floor and gain of every split."""
    head = ["captions", "n", "score", "before", "after", "floor", "floor, blurred", "gain"]
    head += ["copies before", "copies after", "real copies"]
    rows = []
    for split, values in splits.items():
        copies = [f"{100 * values[when]['copies']['mean']:.0f} %" for when in ("before", "after")]
        copies.append(f"{100 * values['real']['own']['copies']:.0f} %")
        for metric in METRICS:
            shown = [report.number(values[of][metric]["mean"], metric) for of in ("before", "after", *CONTROLS[:2])]
            gain = values["gain"][metric]
            share = "{:.0f} % [{:.0f}, {:.0f}]".format(*(100 * x for x in (gain["value"], *gain["interval"])))
            rows.append([split, str(values["real"]["n"]), report.NAMES[metric], *shown, share, *copies])
    return "\n".join(report.table(head, rows))


def picture(before: Pipeline, after: Pipeline, found: dict[str, Any], path: Path, args: argparse.Namespace) -> Path:
    """A held-out caption a row: the real image, before and after with two seeds each."""
    rows = found[HELDOUT]
    index = np.linspace(0, len(rows) - 1, SHOWN).astype(int)
    chosen = rows.take(index)
    drawn = [p(chosen.captions, steps=args.steps, w=args.w, seed=seed) for p in (before, after) for seed in (0, 1)]
    images = np.stack([chosen.images, *drawn], axis=1).reshape(-1, *chosen.images.shape[1:])
    labels = ["real", "before", "before", "after", "after"]
    sheet = grid.grid(images, len(labels), list(chosen.captions), labels, zoom=1)
    return grid.save(path, sheet, {"captions": list(chosen.captions), **vars(args)})


if __name__ == "__main__":
    main()
