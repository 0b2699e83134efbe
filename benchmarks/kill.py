"""Kills a distillation again and again and checks that it ends, bit for bit, where an undisturbed one does.

    python -m benchmarks.kill [--config configs/emoji_lcd.py] [--data data/emoji] [--work runs/kill] [--seed 0]

Two runs of launch.train with one config, every life a process of its own. One run is left alone. The other gets
SIGKILL while its step compiles, between steps and while a checkpoint is written, at moments drawn from the seed,
and the same command again, until it is done.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import config_file, results
from benchmarks.step_time import load_config
from lcm_jax import build
from lcm_jax.run_copy import CHECKPOINTS, CONFIG
from lcm_jax.train import metrics
from lcm_jax.train.checkpoint import Checkpointer

ROOT = Path(__file__).parents[1]
MOMENTS = ("compiling", "stepping", "stepping", "writing", "writing")
PARTS = ("step", "params", "target", "ema", "opt_state")
CLOCKED = re.compile(r"time|images/s|goodput|mfu|.*/(wait_)?share|.*/seconds|memory/.*")  # of no two runs the same
COMPILING, COMPILED = "Compiling jit(step) ", r"Finished XLA compilation of jit\(step\) in ([\d.]+) sec"
UNFINISHED = "*.orbax-checkpoint-tmp*"
POLL = 0.005  # seconds between two looks at a run
COLUMNS = ("run", "aimed_at", "fell", "went_on_from", "last_step", "kept", "lost_steps", "seconds_to_first_step")


@dataclass(frozen=True)
class Kill:
    """When to end a life: a share into the compilation, or after its n-th step or into its n-th save."""

    moment: str
    n: int
    share: float


class Watch:
    """A process and its run folder seen from outside: log, metrics and unfinished checkpoints."""

    def __init__(self, run: Path, log: Path):
        self.run, self.begun = run, time.time()
        self._log, self.text = log.open(encoding="utf-8", errors="replace"), ""
        self.steps: list[dict[str, Any]] = []
        self.saves: list[float] = []  # for how long each new checkpoint has been an unfinished one
        self._since = 0.0
        self._left = self.writing()  # by the life before, until this one clears it away

    def look(self) -> None:
        """Brings everything up to date."""
        self.text += self._log.read()
        path = self.run / metrics.FILE
        if path.exists():
            self.steps = [line for line in metrics.read(path) if line["time"] > self.begun]
        now, writing = time.time(), self.writing()
        self._left = self._left and writing
        if writing and not self._left:
            if not self._since:
                self._since = now
                self.saves.append(0.0)
            self.saves[-1] = now - self._since
        elif not writing:
            self._since = 0.0

    def reached(self, kill: Kill) -> bool:
        """Whether what a kill waits for has come."""
        if kill.moment == "compiling":
            return COMPILING in self.text
        if kill.moment == "writing":
            return len(self.saves) >= kill.n
        return len(self.steps) >= kill.n and not self.writing()

    def writing(self) -> bool:
        """Whether a checkpoint is unfinished."""
        return any((self.run / CHECKPOINTS).glob(UNFINISHED))

    def doing(self) -> str:
        """In what a dead process was found."""
        if self.writing() and not self._left:
            return "writing"
        if re.search(COMPILED, self.text):
            return "stepping"
        return "compiling" if COMPILING in self.text else "starting"

    def pace(self) -> dict[str, float]:
        """Seconds to compile, for a step and to write a checkpoint."""
        times = [line["time"] for line in self.steps]
        return {
            "compiling": float(re.search(COMPILED, self.text)[1]),
            "stepping": median(b - a for a, b in zip(times, times[1:], strict=False)),
            "writing": median(self.saves),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji_lcd.py")
    parser.add_argument("--data", help="latent folder; if left out, the flags among the emoji are encoded")
    parser.add_argument("--work", default="runs/kill", help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--checkpoint_steps", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--name", default="kill")
    args = parser.parse_args()
    work = Path(args.work).absolute()
    work.mkdir(parents=True)
    data = args.data or flags(work / "data")
    config = load_config(args.config)
    config = config_file.train(config, args.steps, data, args.batch_size, args.checkpoint_steps)
    proof = prove(config, work, args.seed)
    print(table(proof["lives"]))
    results.save(args.name, {**{k: v for k, v in vars(args).items() if k not in ("work", "name")}, **proof})
    if not proof["equal"]:
        sys.exit("error: the killed run did not end where the undisturbed one did")


def flags(where: Path) -> str:
    """The latents of the flags among the emoji, encoded as a user would."""
    command = [sys.executable, "-m", "launch.encode", "--reader=twemoji", "--options=tag=flag", f"--out={where}"]
    subprocess.run(command, cwd=ROOT, check=True)
    return str(where)


def prove(config: ConfigDict, work: Path, seed: int, moments: Sequence[str] = MOMENTS) -> dict[str, Any]:
    """Runs a config undisturbed, and killed at `moments` in an order and at places drawn from the seed; compares.

    The config must report every step (loop.log_steps 1) and have steps enough for all kills. Raises RuntimeError
    if a process fails by itself or ends before its kill.
    """
    file = config_file.write(config, work / "config.py")
    command = [sys.executable, "-m", "launch.train", f"--config={file}"]
    whole, pace = live(command, work / "whole", 1)
    rng, lives = random.Random(seed), []
    for moment in rng.sample(moments, len(moments)):
        n = rng.randint(1, int(1.5 * config.loop.checkpoint_steps) if moment == "stepping" else 2)
        lives.append(live(command, work / "broken", len(lives) + 1, Kill(moment, n, rng.random()), pace)[0])
    lives.append(live(command, work / "broken", len(lives) + 1)[0])
    compared = compare(work / "whole", work / "broken")
    return {
        "equal": all(part["different_bytes"] == 0 for part in compared["state"].values())
        and all(compared[name] for name in ("position", "about", "metrics", "control"))
        and all(a["kept"] == b["went_on_from"] for a, b in zip(lives, lives[1:], strict=False) if b["last_step"]),
        "compiled_once": all(life["compilations"] == 1 for life in (whole, *lives) if life["last_step"]),
        "compared": compared,
        "pace_seconds": pace,
        "lives": [whole, *lives],
    }


def live(
    command: Sequence[str], run: Path, number: int, kill: Kill | None = None, pace: dict[str, float] | None = None
) -> tuple[dict[str, Any], dict[str, float] | None]:
    """One process of a run, to its end or to a kill: what became of it, and its pace if it was left alone."""
    print(f"{run.name}, life {number}: {kill or 'left alone'}", file=sys.stderr, flush=True)
    log = run.with_name(f"{run.name}-{number}.log")
    env = {**os.environ, "JAX_LOG_COMPILES": "1"}
    env.pop("JAX_COMPILATION_CACHE_DIR", None)  # a compilation from the cache could not be interrupted
    with log.open("wb") as stream:
        watch = Watch(run, log)
        streams = {"stdout": stream, "stderr": stream, "stdin": subprocess.DEVNULL}
        process = subprocess.Popen([*command, f"--run={run}"], cwd=ROOT, env=env, start_new_session=True, **streams)
    try:
        while process.poll() is None and not (kill is not None and watch.reached(kill)):
            time.sleep(POLL)
            watch.look()
        if kill is not None:
            time.sleep(kill.share * pace[kill.moment])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    watch.look()
    if process.returncode != (0 if kill is None else -signal.SIGKILL):
        end = "before its kill: give it more steps" if process.returncode == 0 else f"by itself: see {log}"
        raise RuntimeError(f"life {number} of {run} ended {end}")
    first, last = (watch.steps[i] if watch.steps else None for i in (0, -1))
    whole = [int(path.name) for path in (run / CHECKPOINTS).glob("*") if path.name.isdigit()]
    kept = max(whole, default=0)
    life = {
        "run": run.name,
        "aimed_at": kill.moment if kill is not None else None,
        "fell": watch.doing() if kill is not None else None,
        "went_on_from": first["step"] - 1 if first else None,  # None: it died before its first step
        "last_step": last["step"] if last else None,  # the last one reported; up to two more were on their way
        "kept": kept,  # step of the newest whole checkpoint
        "lost_steps": max(last["step"] - kept, 0) if last else 0,
        "seconds_to_first_step": round(first["time"] - watch.begun, 1) if first else None,
        "compilations": len(re.findall(COMPILED, watch.text)),  # of the training step, finished
    }
    return life, watch.pace() if kill is None else None


def compare(one: Path, other: Path) -> dict[str, Any]:
    """The last checkpoints of two runs byte by byte, and every number they reported."""
    abstract = build.run(json.loads((one / CONFIG).read_text())).abstract
    kept = [Checkpointer(run / CHECKPOINTS, read_only=True) for run in (one, other)]
    a, b = (run.restore(abstract) for run in kept)
    before = kept[0].restore(abstract, kept[0].steps()[-2])
    reported = [
        [{k: v for k, v in line.items() if not CLOCKED.fullmatch(k)} for line in metrics.read(run / metrics.FILE)]
        for run in (one, other)
    ]
    return {
        "steps": [a.step, b.step],
        "state": {part: differing(getattr(a.state, part), getattr(b.state, part)) for part in PARTS},
        "position": a.position == b.position,
        "about": a.about == b.about,
        "metrics": reported[0] == reported[1],
        "reported_steps": len(reported[0]),
        "control": differing(a.state.params, before.state.params)["different_bytes"] > 0,  # the comparison can see
    }


def differing(a: Any, b: Any) -> dict[str, int]:
    """Leaves and bytes of two trees of one structure, and how many bytes differ."""
    as_bytes = lambda tree: [np.frombuffer(np.asarray(x).tobytes(), np.uint8) for x in jax.tree.leaves(tree)]
    ours, theirs = as_bytes(a), as_bytes(b)
    differ = sum(int((x != y).sum()) for x, y in zip(ours, theirs, strict=True))
    return {"leaves": len(ours), "bytes": sum(map(len, ours)), "different_bytes": differ}


def table(lives: Sequence[dict[str, Any]]) -> str:
    """The lives as a table."""
    lines = [[name.replace("_", " ") for name in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [["" if life[name] is None else str(life[name]) for name in COLUMNS] for life in lives]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
