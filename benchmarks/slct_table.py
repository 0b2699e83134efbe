"""iCT against each change of improved latent consistency training, on real latents, without captions.

    python -m benchmarks.slct_table --data data/emoji --model emoji-teacher --out runs/slct_table

Every row trains the same network on the same data for the same updates; rows add one change each (arXiv
2502.01441), ending in sLCT. EDM's diffusion, sampled in 18 and 40 steps, stands beside them. Resumable: a
finished training (row and seed) is kept in --out.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from benchmarks import results
from lcm_jax.assess import evaluation_set
from lcm_jax.assess.feature_networks import feature_network
from lcm_jax.data import manifest
from lcm_jax.data.loader import make_loader
from lcm_jax.diffusion.boundary import EDMBoundary, consistency, edm_field
from lcm_jax.diffusion.curriculum import Doubling
from lcm_jax.diffusion.grid import Karras
from lcm_jax.diffusion.path import VE
from lcm_jax.evaluate.controls import blur
from lcm_jax.evaluate.features import extract
from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.evaluate.kid import kid
from lcm_jax.evaluate.precision_recall import precision_recall
from lcm_jax.models.adm import adm
from lcm_jax.models.presets import ADMS, named
from lcm_jax.objectives.base import get
from lcm_jax.pipeline import Pipeline, to_pixels
from lcm_jax.sampling import few_step, reference
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.step import init_state, train_step

SIGMA_DATA = 0.5
TIMES = {"1 step": (80.0,), "2 steps": (80.0, 0.5286)}  # sigma_mid of the authors' table
DIFFUSION_STEPS = (18, 40)


@dataclass(frozen=True)
class Variant:
    """One row: an objective's settings and the network's normalisation."""

    objective: dict[str, Any]
    norm: str = "group"


PLAIN = {"name": "slct", "schedule_delta": False, "diffusion_weight": 0.0, "transport": False}
VARIANTS = {
    "iCT": Variant({"name": "ict"}),
    "iCT, mean norm": Variant({"name": "ict", "reduction": "mean", "delta": 0.03456}),
    "+ Cauchy": Variant(PLAIN),
    "+ diffusion loss": Variant({**PLAIN, "diffusion_weight": 5.0}),
    "+ OT": Variant({**PLAIN, "diffusion_weight": 5.0, "transport": True}),
    "+ scheduled c": Variant({"name": "slct"}),
    "+ NsLN (sLCT)": Variant({"name": "slct"}, "ns_layer"),
    "EDM": Variant({"name": "edm"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--model", default="emoji-teacher", help="whose autoencoder decodes")
    parser.add_argument("--preset", default="emoji", help="network, of presets.ADMS")
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--s1", type=int, default=640)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", default="runs/slct_table")
    args = parser.parse_args()
    bench = Bench(args)
    runs = [bench.run(name, seed) for seed in args.seeds for name in args.rows]
    text = table(runs, args.rows, bench.controls)
    values = {"protocol": vars(args), "stages": bench.stages, "controls": bench.controls, "runs": runs, "table": text}
    path = results.save("slct_table", values)
    print(text)
    print(draw(runs, args.rows, bench.controls, path.with_suffix(".png")))


class Bench:
    """What all rows share: data, decoder, features of the real images and the scores of the controls."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.out = args, Path(args.out)
        self.pipe = Pipeline.load(args.model)
        self.sizes = named(ADMS, args.preset)
        self.mean, self.std = manifest.element_stats(args.data)
        if self.mean.shape != (takes := (self.sizes.side, self.sizes.side, self.sizes.in_channels)):
            raise SystemExit(f"{args.data} holds latents {self.mean.shape}, preset {args.preset} takes {takes}")
        intervals = Doubling(10, args.s1, args.updates)
        self.stages = {n: int(intervals(n)) for n in np.linspace(0, args.updates, 8, dtype=int).tolist()}
        self.features = feature_network("mobilenetv2")
        found, _ = evaluation_set.open_folder(args.data, None, {}, self.pipe.spec)
        chosen = evaluation_set.choose(found, ["train"], args.samples)["train"]
        self.real = self.look(chosen.whole.images[chosen.chosen])
        other = chosen.train.images[chosen.other]
        self.controls = {"real": self.scores(self.look(other)), "blurred": self.scores(self.look(blur(other)))}
        self.samples = len(self.real)
        self.identity = {k: v for k, v in vars(args).items() if k not in ("seeds", "rows", "out")}

    def look(self, images: np.ndarray) -> np.ndarray:
        return extract(self.features, images)

    def scores(self, fake: np.ndarray) -> dict[str, float]:
        precision, recall = precision_recall(self.real, fake)
        fd = frechet_distance(moments(self.real), moments(fake))
        return {"kid": 1000 * kid(self.real, fake), "fd": fd, "precision": precision, "recall": recall}

    def run(self, name: str, seed: int) -> dict:
        """The scores of one training, made now or earlier."""
        path = self.out / f"{name.strip('+ ').replace(' ', '_').replace(',', '')}_{seed}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["identity"] != self.identity:
                raise SystemExit(f"{path} was made with other settings: give another --out or remove it")
            return kept
        apply, ema, loss = self.train(name, seed)
        made = {"row": name, "seed": seed, "identity": self.identity, "loss": loss, "scores": {}}
        for steps, draw in self.samplers(name, apply, ema):
            images = self.generate(draw, seed)
            made["scores"][steps] = self.scores(self.look(images))
            print(name, seed, steps, made["scores"][steps], flush=True)
        self.out.mkdir(parents=True, exist_ok=True)
        grid = np.concatenate([np.concatenate(images[i : i + 16], 1) for i in range(0, 64, 16)], 0)
        plt.imsave(path.with_suffix(".png"), grid)
        path.write_text(json.dumps(made, indent=1) + "\n")
        return made

    def train(self, name: str, seed: int) -> tuple[Callable, Any, float]:
        """The averaged weights after all updates, with the mean loss of the last tenth."""
        args, variant = self.args, VARIANTS[name]
        settings = dict(variant.objective)
        if settings["name"] != "edm":
            settings |= {"steps": args.updates, "s1": args.s1}
        objective = get(settings.pop("name"), **settings)
        net = adm(replace(self.sizes, norm=variant.norm))
        tx = optimizer("radam", args.rate)
        step = jax.jit(train_step(objective, net.apply, None, tx, ema_decay=args.ema), donate_argnums=0)
        state = init_state(net.init(jax.random.key(seed)), tx, objective)
        frozen = {"teacher": None, "batch": {"shift": self.mean, "scale": SIGMA_DATA / self.std}}
        loader = make_loader(args.data, "train", args.batch_size, seed=seed)
        key, losses = jax.random.key(1000 + seed), []
        for i in tqdm(range(args.updates), f"{name} {seed}", unit="step", dynamic_ncols=True):
            host = next(loader)
            state, metrics = step(state, frozen, {"mean": host["mean"], "std": host["std"]}, key)
            if i % 50 == 49 or i == args.updates - 1:
                losses.append(float(metrics["loss/mean"]))
                if not np.isfinite(losses[-1]):
                    raise SystemExit(f"{name}: loss is {losses[-1]} at step {i}")
        loader.close()
        return net.apply, state.ema, float(np.mean(losses[-max(1, len(losses) // 10) :]))

    def samplers(self, name: str, apply: Callable, ema: Any):
        """(name, draw(key, n) -> latents at sigma_data) of each way to sample a row."""
        path, shape = VE(), self.mean.shape
        field = edm_field(path, lambda x, noise: apply(ema, x, noise), SIGMA_DATA)
        if VARIANTS[name].objective["name"] == "edm":
            for n in DIFFUSION_STEPS:
                times = reference.edm_times(n, Karras())
                yield f"{n} steps", lambda key, b, times=times: reference.sample(
                    "heun", path, field, jax.random.normal(key, (b, *shape)), times
                )
        else:
            f = consistency(path, EDMBoundary(), field)
            for steps, sigmas in TIMES.items():
                yield steps, lambda key, b, sigmas=sigmas: few_step.sample(
                    f, path, jax.random.normal(key, (len(sigmas), b, *shape)), np.array(sigmas), sigma_min=0.002
                )

    def generate(self, draw: Callable, seed: int, size: int = 100) -> np.ndarray:
        """uint8 pictures, as many as there are real ones."""
        autoencoder, params = self.pipe.autoencoder, self.pipe.params["autoencoder"]

        @jax.jit
        def pictures(key):
            raw = draw(key, size) * (self.std / SIGMA_DATA)[None] + self.mean[None]
            return to_pixels(autoencoder.apply(params, raw, method="decode"))

        keys = jax.random.split(jax.random.key(seed), -(-self.samples // size))
        return np.concatenate([np.asarray(pictures(key)) for key in keys])[: self.samples]


def gathered(runs: list[dict], row: str) -> dict[str, dict[str, list[float]]]:
    """{steps: {score: values over the seeds}} of a row."""
    own = [r["scores"] for r in runs if r["row"] == row]
    return {steps: {k: [s[steps][k] for s in own] for k in own[0][steps]} for steps in own[0]}


def table(runs: list[dict], rows: list[str], controls: dict) -> str:
    """Markdown: the mean over the seeds and, where there are several, their standard deviation."""
    lines = ["| | steps | KID x 1000 | FD | FD - floor | recall |", "|---|---|---|---|---|---|"]
    floor = controls["real"]["fd"]
    for name, scores in controls.items():
        lines.append(f"| {name} | - | {scores['kid']:.0f} | {scores['fd']:.0f} | - | {scores['recall']:.2f} |")
    for row in rows:
        for steps, s in gathered(runs, row).items():
            excess = [fd - floor for fd in s["fd"]]
            cells = [spread(s["kid"]), spread(s["fd"]), spread(excess), spread(s["recall"], 2)]
            lines.append(f"| {row} | {steps} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 0) -> str:
    """mean +- standard deviation over the seeds."""
    text = f"{statistics.mean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} +- {statistics.stdev(values):.{digits}f}"


def draw(runs: list[dict], rows: list[str], controls: dict, path: Path) -> Path:
    """KID of every row and step count, a dot a seed, between the floor and the blurred control."""
    figure, axis = plt.subplots(figsize=(7, 3.6))
    labels = {}
    for x, row in enumerate(rows):
        for i, (steps, s) in enumerate(gathered(runs, row).items()):
            colour = f"C{labels.setdefault(steps, len(labels))}"
            axis.plot([x + 0.2 * i - 0.1] * len(s["kid"]), s["kid"], "o", color=colour, label=steps)
    for (name, scores), style in zip(controls.items(), ("--", ":"), strict=True):
        axis.axhline(scores["kid"], color="grey", linestyle=style, label=name)
    axis.set_xticks(range(len(rows)), rows, rotation=25, ha="right")
    axis.set(ylabel="KID-MobileNetV2 x 1000", yscale="symlog")
    handles, names = axis.get_legend_handles_labels()
    once = dict(zip(names, handles, strict=True))
    axis.legend(once.values(), once.keys(), fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return path


if __name__ == "__main__":
    main()
