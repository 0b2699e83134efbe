"""iCT against each change of improved latent consistency training, on real latents, without captions.

    python -m launch.encode --reader twemoji --model emoji-teacher --out data/emoji
    python -m benchmarks.slct_table
    python -m benchmarks.slct_table --network emoji --updates 20000 --batch_size 128 --rate 1e-4 --ema 0.999 --name NAME

The first is what two cores can in a night, the second of the size of configs/emoji_slct.py. Every row trains the same
network on the same data for the same updates, through the whole curriculum; rows add one change each (arXiv
2502.01441), ending in sLCT. EDM's diffusion, sampled in 18 and 40 steps, stands beside them, and says whether the
updates are enough: over the last fifth of them it should improve by less than 5 %. Every row and seed is a run of its
own in --out, which goes on where it stopped; those that results/NAME.json has are not run again, so the table can be
made in parts (--seeds, --rows), side by side or on one machine after another.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from benchmarks import results, training
from configs import emoji_slct
from lcm_jax import run_folder
from lcm_jax.assess import evaluation_set, noise_evaluation
from lcm_jax.assess.feature_networks import feature_network
from lcm_jax.diffusion.curriculum import Doubling
from lcm_jax.edm_pipeline import EDMPipeline


@dataclass(frozen=True)
class Variant:
    """One row: an objective's settings and the network's normalisation."""

    objective: dict[str, Any]
    norm: str = "group"


PLAIN = {"name": "slct", "schedule_delta": False, "diffusion_weight": 0.0, "transport": False}
REFERENCE = "EDM"
PARTS = ("seeds", "rows", "name", "out")  # what may differ between the calls that make one table
FIFTHS = 5  # checkpoints of a run, the last two of which are kept
VARIANTS = {
    "iCT": Variant({"name": "ict"}),
    "iCT, mean norm": Variant({"name": "ict", "reduction": "mean", "delta": 0.03456}),
    "+ Cauchy": Variant(PLAIN),
    "+ diffusion loss": Variant({**PLAIN, "diffusion_weight": 5.0}),
    "+ OT": Variant({**PLAIN, "diffusion_weight": 5.0, "transport": True}),
    "+ scheduled c": Variant({"name": "slct"}),
    "+ NsLN (sLCT)": Variant({"name": "slct"}, "ns_layer"),
    REFERENCE: Variant({"name": "edm"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--model", default="emoji-teacher", help="whose autoencoder decodes")
    parser.add_argument("--network", default="emoji_small", help="network, of presets.NOISE_NETWORKS")
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--ema", type=float, default=0.995)
    parser.add_argument("--s1", type=int, default=640)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--features", default="mobilenetv2", help="or inception, FID's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--name", default="slct_table")
    parser.add_argument("--out", help="folder of the runs; by default runs/NAME")
    args = parser.parse_args()
    args.out = args.out or f"runs/{args.name}"
    if args.updates % FIFTHS:
        parser.error(f"--updates {args.updates} is no multiple of {FIFTHS}: runs are looked at after every fifth")
    protocol = {name: value for name, value in vars(args).items() if name not in PARTS}
    if (made := results.kept(args.name)) and made["protocol"] != protocol:
        parser.error(f"results/{args.name}.json is of other settings, {made['protocol']}: give another --name")
    net, judge = feature_network(args.features), None
    for seed in args.seeds:
        for row in args.rows:
            if any((run["row"], run["seed"]) == (row, seed) for run in results.kept(args.name).get("runs", [])):
                continue
            pipe = train(args, row, seed)
            if judge is None:
                found, _ = evaluation_set.open_folder(args.data, None, {}, pipe.spec)
                judge = noise_evaluation.Judge(found, net, args.samples)
            run = scored(args, pipe, judge, row, seed)
            controls = judge.controls()
            with results.held():
                others = results.kept(args.name).get("runs", [])  # and those another call made meanwhile
                results.save(args.name, gathered(protocol, judge.n, controls, [*others, run]), show=False)
            print(row, seed, {steps: round(s["kid"]) for steps, s in run["scores"].items()}, flush=True)
    show(results.kept(args.name), results.FOLDER / f"{args.name}.png")


def gathered(
    protocol: dict[str, Any], n: int, controls: dict[str, dict[str, float]], runs: list[dict[str, Any]]
) -> dict[str, Any]:
    """What is kept: the runs so far and all that their table needs."""
    updates = protocol["updates"]
    intervals = Doubling(10, protocol["s1"], updates)
    stages = {step: int(intervals(step)) for step in np.linspace(0, updates, 8, dtype=int).tolist()}
    values = {"protocol": protocol, "images": updates * protocol["batch_size"], "n": n, "stages": stages}
    return values | {"controls": controls, "runs": runs, "table": table(runs, controls)}


def show(made: dict[str, Any], path: Path) -> None:
    """Prints the table and whether the updates were enough, and draws the figure."""
    told = made["protocol"]
    print(made["table"])
    print(f"{told['updates']} updates of {told['batch_size']}: {made['images']} images a run, N up to {told['s1']}")
    settling = [(r["before"], r["scores"][next(iter(r["scores"]))]["kid"]) for r in made["runs"] if "before" in r]
    if settling:
        before, after = (statistics.mean(when) for when in zip(*settling, strict=True))
        print(f"{REFERENCE}'s KID x 1000 in the last fifth of the updates: {before:.0f} to {after:.0f}")
    print(draw(made["runs"], made["controls"], path))


def scored(
    args: argparse.Namespace, pipe: EDMPipeline, judge: noise_evaluation.Judge, row: str, seed: int
) -> dict[str, Any]:
    """A run's entry; the reference's says, too, where it stood a fifth of the updates `before`."""
    where, steps = folder(args, row, seed), pipe.usual_steps
    scores = score(pipe, judge, steps, args.samples, where / "scores")
    run: dict[str, Any] = {"row": row, "seed": seed, "scores": scores}
    if row == REFERENCE:
        before = run_folder.pipeline(where, args.updates // FIFTHS * (FIFTHS - 1))
        run["before"] = score(before, judge, steps[:1], args.samples, where / "scores_before")[str(steps[0])]["kid"]
    return run


def score(
    pipe: EDMPipeline, judge: noise_evaluation.Judge, steps: tuple[int, ...], samples: int, out: Path
) -> dict[str, dict[str, float]]:
    """{steps: scores} of one model, kept in `out`."""
    plan = noise_evaluation.Plan(steps, (0,), samples)
    scored = noise_evaluation.evaluate(pipe, judge, plan, out)
    return {str(entry["steps"]): entry["scores"] for entry in scored["entries"]}


def folder(args: argparse.Namespace, row: str, seed: int) -> Path:
    """The run of a row and seed."""
    return Path(args.out) / f"{row.strip('+ ').replace(' ', '_').replace(',', '')}_{seed}"


def train(args: argparse.Namespace, row: str, seed: int) -> EDMPipeline:
    """The model of a row after all updates, made now or earlier."""
    variant = VARIANTS[row]
    c = emoji_slct.get_config()
    c.seed, c.steps = seed, args.updates
    c.data.update(folder=args.data, batch_size=args.batch_size)
    c.model.update(start=args.model, network=args.network, norm=variant.norm)
    c.optimizer.rate, c.average.ema_decay = args.rate, args.ema
    c.loop.update(sample_steps=args.updates, checkpoint_steps=args.updates // FIFTHS)
    config = c.to_dict()
    config["objective"] = {**variant.objective, **({} if variant.objective["name"] == "edm" else {"s1": args.s1})}
    where = folder(args, row, seed)
    training.train(config, where)
    return run_folder.pipeline(where)


def over_seeds(runs: list[dict[str, Any]], row: str) -> dict[str, dict[str, list[float]]]:
    """{steps: {score: values over the seeds}} of a row."""
    own = [r["scores"] for r in runs if r["row"] == row]
    return {steps: {k: [s[steps][k] for s in own] for k in own[0][steps]} for steps in own[0]}


def rows_of(runs: list[dict[str, Any]]) -> list[str]:
    """The rows there are, in the table's order."""
    return [row for row in VARIANTS if any(run["row"] == row for run in runs)]


def table(runs: list[dict[str, Any]], controls: dict) -> str:
    """Markdown: the mean over the seeds and, where there are several, its 95 % interval (Student's t)."""
    lines = ["| | steps | KID x 1000 | FD | FD - floor | recall |", "|---|---|---|---|---|---|"]
    for name, s in controls.items():
        lines.append(f"| {name} | - | {s['kid']:.0f} | {s['fd']:.0f} | {s['fd - floor']:.0f} | {s['recall']:.2f} |")
    for row in rows_of(runs):
        for steps, s in over_seeds(runs, row).items():
            cells = [spread(s["kid"]), spread(s["fd"]), spread(s["fd - floor"]), spread(s["recall"], 2)]
            lines.append(f"| {row} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 0) -> str:
    """mean [low, high]: trained and drawn anew, the mean lies there in 95 of 100 cases."""
    mean, n = statistics.mean(values), len(values)
    if n < 2:
        return f"{mean:.{digits}f}"
    away = float(stats.t.ppf(0.975, n - 1)) * statistics.stdev(values) / n**0.5
    return f"{mean:.{digits}f} [{mean - away:.{digits}f}, {mean + away:.{digits}f}]"


def draw(runs: list[dict], controls: dict, path: Path) -> Path:
    """KID of every row and step count, a dot a seed and a bar their mean, above the floor and the blurred control."""
    figure, axis = plt.subplots(figsize=(7, 3.6))
    labels, rows = {}, rows_of(runs)
    for x, row in enumerate(rows):
        for i, (steps, s) in enumerate(over_seeds(runs, row).items()):
            colour = f"C{labels.setdefault(steps, len(labels))}"
            told = f"{steps} step{'s' * (steps != '1')}"
            axis.bar(x + 0.36 * i - 0.18, statistics.mean(s["kid"]), 0.34, color=colour, alpha=0.5, label=told)
            axis.plot([x + 0.36 * i - 0.18] * len(s["kid"]), s["kid"], "o", color=colour, markersize=3)
    for (name, scores), style in zip(controls.items(), ("--", ":"), strict=True):
        axis.axhline(scores["kid"], color="grey", linestyle=style, label=name)
    axis.set_xticks(range(len(rows)), rows, rotation=25, ha="right")
    axis.set(ylabel="KID x 1000")
    handles, names = axis.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axis.legend(once.values(), once.keys(), fontsize=7, ncols=6, loc="upper left")
    axis.margins(y=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
