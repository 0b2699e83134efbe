"""What latent consistency fine-tuning buys on a subset with its own look, without a teacher (LCM sec. 4.4).

    python -m benchmarks.finetune --start exported/emoji_lcm --data data/emoji --tag flag --w 1 --out runs/finetune

Scores the model before and after on the subset's captions. The gain is the share of the excess over the
real-against-real floor that fine-tuning takes away, with an interval from resampling base emoji.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from configs import emoji_flags_lcf
from lcm_jax import build, run_folder
from lcm_jax.assess import evaluation, evaluation_set, feature_networks
from lcm_jax.assess.evaluation_plan import Plan
from lcm_jax.evaluate import grid
from lcm_jax.pipeline import Pipeline

METRICS = ("kid", "fd")
SHOWN = 8  # captions in the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, help="exported consistency model")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--tag", default="flag")
    parser.add_argument("--split", default="train", help="split whose captions are scored")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--w", type=float, default=1.0)
    parser.add_argument("--out", default="runs/finetune")
    args = parser.parse_args()

    config = emoji_flags_lcf.get_config()
    config.steps = args.updates
    config.data.update(folder=args.data, tag=args.tag)
    config.model.start = args.start
    config.loop.sample_steps = 0
    out = Path(args.out)
    run_folder.train(build.run(config), out / "run")
    before, after = Pipeline.load(args.start), run_folder.pipeline(out / "run")

    found, uncond = evaluation_set.open_folder(args.data, None, {}, before.spec, args.tag)
    net = feature_networks.feature_network("mobilenetv2")
    plan = Plan(steps=(args.steps,), w=(args.w,), seeds=(0, 1, 2), splits=(args.split,))
    scored = {
        name: evaluation.evaluate(pipe, None, found, uncond, net, plan, out / name)
        for name, pipe in (("before", before), ("after", after))
    }
    values = {
        "protocol": vars(args),
        "before": student(scored["before"])["scores"],
        "after": student(scored["after"])["scores"],
        "floor": control(scored["after"], "halves")["scores"],
        "gain": {metric: gain(out, scored, metric) for metric in METRICS},
    }
    path = results.save("finetune", values)
    print(picture(before, after, found[args.split].captions, args, path.with_suffix(".png")))


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
    floor = control(scored["after"], "halves")["scores"][metric]["mean"]
    draw = lambda name: np.load(out / name / evaluation.RESAMPLED / f"{student(scored[name])['key']}.npz")[metric]
    point = [student(scored[name])["scores"][metric]["mean"] for name in ("before", "after")]
    share = lambda before, after: 1 - (after - floor) / (before - floor)
    low, high = np.quantile(share(draw("before"), draw("after")), [0.025, 0.975])
    return {"value": share(*point), "interval": [float(low), float(high)], "floor": floor}


def picture(before: Pipeline, after: Pipeline, captions: list[str], args: argparse.Namespace, path: Path) -> Path:
    """A caption a row: before and after, two seeds each."""
    chosen = [captions[i] for i in np.linspace(0, len(captions) - 1, SHOWN).astype(int)]
    drawn = [p(chosen, steps=args.steps, w=args.w, seed=seed) for p in (before, after) for seed in (0, 1)]
    images = np.stack(drawn, axis=1).reshape(-1, *drawn[0].shape[1:])
    sheet = grid.grid(images, 4, chosen, ["before", "before", "after", "after"], zoom=1)
    return grid.save(path, sheet, {"captions": chosen, **vars(args)})


if __name__ == "__main__":
    main()
