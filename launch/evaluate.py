"""Scores a model beside its teacher: scores.json, table.md and scores.png in --out.

    python -m launch.evaluate --checkpoint runs/lcd --teacher emoji-teacher --data data/emoji --out runs/lcd/evaluation
    python -m launch.evaluate --model emoji-teacher --data data/emoji --sweep_w 0,1,2,3,5 --out runs/sweep

A model of noise levels (no captions, no --teacher) is held against its training images; --search_sigmas 3 seeks the
noise levels of 1 to 3 steps that score best (by KID, or --search_score) and, given --model, keeps them in it.

--watch scores every checkpoint of a run that is being trained, in folders of --out, until the run is done.

An estimated half an hour on two cores for everything, two minutes with --quick. Run again, it goes on where it
stopped.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from launch import entry, opening, several

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of the model to score; or give --model.")
MODEL = flags.DEFINE_string("model", None, "Exported folder or shipped model to score.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params", "target"], "Which weights of a run.")
EMA = flags.DEFINE_string("ema", None, "Average of a run that keeps several, as 0.9999 or power0.1; else the first.")
STEP = flags.DEFINE_string("step", None, "Step of a run's checkpoint, or best; the newest if left out.")
TEACHER = flags.DEFINE_string("teacher", None, "Model the student was distilled from, scored beside it.")
DATA = flags.DEFINE_string("data", None, "Latent folder: captions, splits and contexts.")
READER = flags.DEFINE_string("reader", None, "Reader of the real images; if left out, the one --data was encoded with.")
FOLDER = flags.DEFINE_string("folder", None, "Where the real images are now, if not where they were encoded from.")
TAG = flags.DEFINE_string("tag", None, "Only the examples that carry this tag, such as flag.")
FEATURES = flags.DEFINE_string("features", "mobilenetv2", "Feature network.")
OUT = flags.DEFINE_string("out", None, "Folder of the results.")
QUICK = flags.DEFINE_bool("quick", False, "Only what the promised ratios need, 160 held-out captions, one seed.")
SWEEP = flags.DEFINE_list("sweep_w", None, "Only find the best of these w on training captions (teacher, or model).")
LISTS = {
    "steps": (int, flags.DEFINE_list("steps", None, "Steps of the student.")),
    "w": (float, flags.DEFINE_list("w", None, "Guidance w of the student (others' scale - 1), or its usual one.")),
    "seeds": (int, flags.DEFINE_list("seeds", None, "Seeds, averaged.")),
    "samplers": (str, flags.DEFINE_list("samplers", None, "Samplers of the teacher; the first at every step count.")),
    "teacher_steps": (int, flags.DEFINE_list("teacher_steps", None, "Steps of the teacher.")),
    "teacher_w": (float, flags.DEFINE_list("teacher_w", None, "Guidance w of the teacher; by default --w's first.")),
    "splits": (str, flags.DEFINE_list("splits", None, "heldout, train or both.")),
}
SEARCH = flags.DEFINE_integer("search_sigmas", None, "Seek the best noise levels of 1 to N steps.", lower_bound=1)
SCORE = flags.DEFINE_enum(
    "search_score", "kid", ["kid", "fd", "precision", "recall"], "What --search_sigmas seeks the best of."
)
LIMIT = flags.DEFINE_integer("limit", None, "Images a split, at most.", lower_bound=1)
RESAMPLES = flags.DEFINE_integer("resamples", None, "Resamples of the intervals.", lower_bound=2)
WATCH = flags.DEFINE_bool("watch", False, "Score each checkpoint of the run as it lands, until the run is done.")
POLL = flags.DEFINE_float("poll_seconds", 30.0, "How often --watch looks.", lower_bound=0.1)
# The intervals need thousands of small factorisations, which threads only slow down; read when numpy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
flags.mark_flags_as_required(["data", "out"])
flags.mark_flags_as_mutual_exclusive(["checkpoint", "model"], required=True)


def main() -> None:
    entry.folder(OUT)
    several.alone("start it once; launch.score shares its pictures out")
    if SCORE.present and SEARCH.value is None:
        entry.stop("--search_score is what --search_sigmas N seeks the best of: give both")
    if not WATCH.value:
        return score(entry.step(STEP, CHECKPOINT), Path(OUT.value))
    if CHECKPOINT.value is None or STEP.value is not None:
        entry.stop("--watch is for a run as it goes: give --checkpoint, and no --step")
    from lcm_jax.assess import watching

    watching.each(CHECKPOINT.value, POLL.value, lambda step: score(step, Path(OUT.value) / f"step_{step:07d}"))


def score(step: int | None, out: Path) -> None:
    """Scores of one model, in a folder."""
    from lcm_jax import run_folder

    told = run_folder.takes_captions(CHECKPOINT.value or MODEL.value, **opening.how())
    (captioned if told else from_noise)(step, out)


def captioned(step: int | None, out: Path) -> None:
    """Scores of a model that draws by captions."""
    from lcm_jax import run_folder
    from lcm_jax.assess import evaluation, evaluation_plan, evaluation_set, feature_networks, guidance_sweep
    from lcm_jax.machine import machine

    if SEARCH.value is not None:
        entry.stop("--search_sigmas is for models of noise levels, without captions")
    given = {name: numbers(name, kind, flag.value) for name, (kind, flag) in LISTS.items() if flag.value}
    weights, how = entry.weights(WEIGHTS, EMA, CHECKPOINT), opening.how()
    model = run_folder.pipeline(CHECKPOINT.value or MODEL.value, step, weights, **how)
    plan = evaluation_plan.with_flags(
        evaluation_plan.quick(model) if QUICK.value else evaluation_plan.Plan(w=(model.default_w,)),
        **given,
        limit=LIMIT.value,
        resamples=RESAMPLES.value,
    )
    student, teacher = evaluation_plan.roles(model, TEACHER.value and run_folder.captioned(TEACHER.value, **how))
    moved = {} if FOLDER.value is None else {"folder": FOLDER.value}
    found, uncond = evaluation_set.open_folder(DATA.value, READER.value, moved, model.spec, TAG.value)
    net = feature_networks.feature_network(FEATURES.value)
    if SWEEP.value is None:
        evaluation.evaluate(student, teacher, found, uncond, net, plan, out, {"machine": machine()})
        print((out / evaluation.TABLE).read_text() + f"written to {out}")
        return
    pipe = teacher or student
    steps = max(plan.teacher_steps if pipe is teacher else plan.steps)
    ws = numbers("sweep_w", float, SWEEP.value)
    best, rows = guidance_sweep.sweep(pipe, found, uncond, net, ws, steps, plan.limit, plan.seeds[0], plan.resamples)
    out.mkdir(parents=True, exist_ok=True)
    (out / "sweep.json").write_text(json.dumps({"best": best, "rows": rows, "machine": machine()}, indent=1))
    (out / "sweep.md").write_text(guidance_sweep.markdown(rows))
    print((out / "sweep.md").read_text() + f"best w {best:g}, guidance scale {best + 1:g}")


CAPTIONED_ONLY = ("teacher", "quick", "sweep_w", "w", "samplers", "teacher_steps", "teacher_w", "splits",
                  "resamples", "variant", "kind", "empty_caption")  # fmt: skip


def from_noise(step: int | None, out: Path) -> None:
    """Scores of a model of noise levels."""
    if needless := [name for name in CAPTIONED_ONLY if flags.FLAGS[name].present]:
        entry.stop(f"this model draws from noise alone: leave --{needless[0]} out")
    from lcm_jax import run_folder
    from lcm_jax.assess import evaluation_set, feature_networks, noise_evaluation
    from lcm_jax.machine import machine

    pipe = run_folder.pipeline(CHECKPOINT.value or MODEL.value, step, entry.weights(WEIGHTS, EMA, CHECKPOINT))
    moved = {} if FOLDER.value is None else {"folder": FOLDER.value}
    found, _ = evaluation_set.open_folder(DATA.value, READER.value, moved, pipe.spec, TAG.value)
    given = {name: numbers(name, int, LISTS[name][1].value) for name in ("steps", "seeds") if LISTS[name][1].value}
    given |= {"limit": LIMIT.value} if LIMIT.value else {}
    plan = noise_evaluation.Plan(**{"steps": pipe.usual_steps, **given})
    judge = noise_evaluation.Judge(found, feature_networks.feature_network(FEATURES.value), plan.limit)
    if SEARCH.value is None:
        noise_evaluation.evaluate(pipe, judge, plan, out, {"machine": machine()})
        print((out / noise_evaluation.TABLE).read_text() + f"written to {out}")
        return
    by = SCORE.value
    best = noise_evaluation.best_sigmas(pipe, judge, SEARCH.value, plan.seeds[0], by)
    out.mkdir(parents=True, exist_ok=True)
    tried = [{"sigmas": list(sigmas), by: score} for sigmas, score in best.tried.items()]
    sought = {"score": by, "features": judge.net.name, "n": judge.n, "seed": plan.seeds[0]}
    record = {"best": [list(s) for s in best.best], by: best.scores, "tried": tried, **sought}
    (out / "sigmas.json").write_text(json.dumps({**record, "machine": machine()}, indent=1))
    for sigmas, score in zip(best.best, best.scores, strict=True):
        name = noise_evaluation.HEADS[by]
        print(f"{len(sigmas)} steps: sigmas {', '.join(f'{level:.4g}' for level in sigmas)}; {name} {score:.4g}")
    if MODEL.value is not None:
        run_folder.keep_sigmas(MODEL.value, best.best, {**sought, "values": best.scores})
        print(f"kept in {MODEL.value}")


def numbers(name: str, kind: Callable[[str], Any], values: list[str]) -> tuple[Any, ...]:
    """The values of a list flag."""
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        return entry.stop(f"--{name} takes {kind.__name__} values with commas between, not {','.join(values)!r}")


if __name__ == "__main__":
    entry.run(main)
