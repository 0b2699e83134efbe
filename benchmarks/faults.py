"""What a run of two processes survives: kills, signals, damaged checkpoints, slow and missing data; bit for bit.

    python -m benchmarks.faults --data data/emoji [--kills 20 --terms 10 --seed 0]

launch.local_cluster runs launch.train once undisturbed and once disturbed: one of its processes gets SIGKILL while
starting, restoring, stepping or writing a checkpoint, or SIGTERM; the newest checkpoint is cut or one bit of it turned,
a shard is removed or cut while the run reads it and before it starts, no file may grow as on a full disk, batches come
late. After each the same command is given again, and the end is compared byte by byte.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import cluster, config_file, results
from benchmarks.kill import Watch, compare
from benchmarks.step_time import load_config
from lcm_jax.run_copy import CHECKPOINTS
from lcm_jax.train import metrics

ROOT = Path(__file__).parents[1]
POLL = 0.01
LAST = 240.0  # seconds for what was hit to end
MOMENTS = ("starting", "restoring", "stepping", "writing")
STEPS_ON = 10  # for which a life goes on without a shard, if it can
FULL = 2**20  # bytes that no file may exceed: checkpoints do
SLOW = (  # launch.train whose every tenth batch comes a second late
    "import runpy, sys, time; from lcm_jax.data.loader import Loader; own = Loader.__next__; count = iter(range(9**9));"
    "Loader.__next__ = lambda self: (next(count) % 10 or time.sleep(1), own(self))[1];"
    "sys.argv[0] = 'launch/train.py'; runpy.run_module('launch.train', run_name='__main__')"
)


@dataclass(frozen=True)
class Fault:
    """What happens to a life; `moment` is when, `share` how far into it, `process` to which of the two."""

    kind: str  # SIGKILL or SIGTERM; of the files: "cut", "flipped", "removed", "shortened", "full"
    moment: str = "end"
    n: int = 1
    share: float = 0.0
    process: int = 0
    slow: bool = False  # every tenth batch comes a second late


@dataclass
class Life:
    """What became of one start of the command."""

    fault: Fault
    hit: bool = False  # the fault came before the life's own end
    doing: str | None = None  # when it came: one of MOMENTS
    code: int = 0
    went_on_from: int | None = None
    last_step: int | None = None
    kept: int = 0  # newest whole checkpoint
    seconds: float = 0.0
    said: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji_lcd.py")
    parser.add_argument("--data", required=True, help="latent folder")
    parser.add_argument("--work", default="runs/faults", help="a folder without a run named broken")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--terms", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--checkpoint_steps", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=8)
    args = parser.parse_args()
    work = Path(args.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    data = work / "data"
    shutil.copytree(args.data, data, dirs_exist_ok=True)
    config = load_config(args.config)
    config.data.memory_limit = 0  # read from the shards as it goes
    config = config_file.train(config, args.steps, str(data), args.batch_size, args.checkpoint_steps)
    file = work / "config.py"
    if not file.exists():
        config_file.write(config, file)
    if reported(work / "whole") < args.steps:
        live(file, work / "whole", Fault("none"), 0.0)
    start = first_step(work / "whole")
    print(f"undisturbed: {start:.0f} s until the first step", flush=True)
    lives, damages = [], []
    run = work / "broken"
    for fault in faults(args.kills, args.terms, args.checkpoint_steps, random.Random(args.seed)):
        if fault.kind in ("cut", "flipped"):
            damages.append({**damage(run, fault.kind), "met_by": len(lives)})
            continue
        if fault.kind in ("removed", "shortened"):
            found, life = missing(file, run, data, fault.kind, start)
            damages.append(found)
            lives.append(life)
            continue
        if fault.kind == "full":
            lives.append(live(file, run, fault, start))
            damages.append({"kind": "full", "code": lives[-1].code, "answer": lives[-1].said})
            continue
        lives.append(live(file, run, fault, start))
        print(f"life {len(lives)}: {lives[-1]}", flush=True)
        for found in damages:
            found.setdefault("answer", lives[-1].said)
            found.setdefault("went_on_from", lives[-1].went_on_from)
        if not lives[-1].hit:
            raise RuntimeError(f"the run ended before {fault}: give it more steps")
    while not lives[-1].code == 0 or lives[-1].hit:
        lives.append(live(file, run, Fault("none"), start))
    compared = compare(work / "whole", run)
    met = {found["met_by"] for found in damages if "met_by" in found}  # these lives went on from the one before
    sound = {
        "equal": all(part["different_bytes"] == 0 for part in compared["state"].values()) and compared["metrics"],
        "nothing_lost": all(
            lives[i].went_on_from in (None, lives[i - 1].kept) for i in range(1, len(lives)) if i not in met
        ),
        "signals_kept_their_step": all(x.kept == x.last_step for x in lives if x.fault.kind == "SIGTERM" and x.hit),
        "damage_was_told": all(map(told, damages)),
    }
    killed = [x for x in lives if x.fault.kind == "SIGKILL"]
    counts = {
        "killed_while": Counter(x.doing for x in killed),
        "killed_the_coordinator": sum(x.fault.process == 0 for x in killed),
        "signalled": sum(x.fault.kind == "SIGTERM" and x.hit for x in lives),
    }
    values = {k: v for k, v in vars(args).items() if k not in ("work", "data")}
    lived = [asdict(x) for x in lives]
    results.save("faults", {**values, **sound, **counts, "compared": compared, "damages": damages, "lives": lived})
    if not all(sound.values()):
        sys.exit(f"error: {sound}")


def faults(kills: int, terms: int, save: int, rng: random.Random) -> list[Fault]:
    """All of them in an order drawn from the seed; a damaged checkpoint is met by the life after it.

    Raises ValueError where too few signals come in the second half.
    """
    found = [
        Fault("SIGKILL", MOMENTS[i % len(MOMENTS)], rng.randint(1, save + 2), rng.random(), rng.randrange(2))
        for i in range(kills)
    ]
    found += [Fault("SIGTERM", "stepping", rng.randint(1, save), rng.random(), rng.randrange(2)) for _ in range(terms)]
    rng.shuffle(found)
    kinds = ("cut", "flipped", "removed", "shortened", "full")
    late = [x for i, x in enumerate(found) if i > len(found) // 2 and x.kind == "SIGTERM"]
    if len(late) < len(kinds):
        raise ValueError(f"of {terms} signals {len(late)} come late enough: give --terms or --seed other values")
    for kind, before in zip(kinds, rng.sample(late, len(kinds)), strict=True):  # a life that steps meets it
        found.insert(next(i for i, x in enumerate(found) if x is before), Fault(kind))
    return [*found, Fault("SIGTERM", "stepping", 12, slow=True)]


def told(found: dict[str, Any]) -> bool:
    """Whether the run said what was wrong and took no harm."""
    if found["kind"] in ("cut", "flipped"):
        return "cannot be read" in found["answer"] and found["went_on_from"] < found["checkpoint"]
    if found["kind"] == "full":
        return "error:" in found["answer"] and found["code"] != 0
    return "error:" in found["answer"] and found["code"] != 0 and found["checkpoints_untouched"]


def live(
    config: Path, run: Path, fault: Fault, start: float, meanwhile: Callable[[], object] | None = None
) -> Life:
    """Starts the command and does to it what the fault says; `start` seconds pass until its first step.

    `meanwhile` is called once it steps.
    """
    life, number = Life(fault), len(list(run.parent.glob(f"{run.name}-*.log"))) + 1
    log = run.with_name(f"{run.name}-{number}.log")
    train = ["-c", SLOW] if fault.slow else ["-m", "launch.train"]
    command = cluster.together(2, [*train, f"--config={config}", f"--run={run}"])
    env = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    with log.open("wb") as stream:
        watch, begun = Watch(run, log), time.time()
        streams = {"stdout": stream, "stderr": stream, "stdin": subprocess.DEVNULL}
        bound = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))) if fault.kind == "full" else None
        process = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, preexec_fn=bound, **streams)
    try:
        while process.poll() is None and not reached(watch, fault, begun, start, process.pid):
            time.sleep(POLL)
            watch.look()
            if meanwhile is not None and watch.steps:
                meanwhile()
                meanwhile = None
        if process.poll() is None and fault.kind.startswith("SIG"):
            time.sleep(fault.share * 0.3 if fault.moment in ("stepping", "writing") else 0)
            watch.look()
            hit = cluster.children(process.pid)[fault.process :][:1]
            if hit:
                life.doing = doing(watch, process.pid)
                os.kill(hit[0], getattr(signal, fault.kind))
                life.hit = True
        life.code = process.wait(timeout=LAST)
    finally:
        if process.poll() is None:
            for child in [*cluster.children(process.pid), process.pid]:
                os.kill(child, signal.SIGKILL)
            process.wait()
    watch.look()
    life.seconds = round(time.time() - begun, 1)
    if fault.kind == "none" and life.code:
        raise RuntimeError(f"a life ended by itself with {life.code}: see {log}")
    life.kept = max((int(p.name) for p in (run / CHECKPOINTS).glob("*") if p.name.isdigit()), default=0)
    if watch.steps:
        life.went_on_from, life.last_step = watch.steps[0]["step"] - 1, watch.steps[-1]["step"]
    telling = ("cannot be read", "last good", "error:", "stopped by a signal")
    lines = watch.text.replace(f"{ROOT}/", "").splitlines()
    life.said = " | ".join(x[:200] for x in lines if any(word in x for word in telling))[:600]
    return life


def reached(watch: Watch, fault: Fault, begun: float, start: float, parent: int) -> bool:
    """Whether a fault's moment has come."""
    if fault.moment == "starting":
        return time.time() - begun > fault.share * start
    if fault.moment == "restoring":  # where there is no checkpoint yet, its first step will do
        return reading(watch.run, parent) or bool(watch.steps)
    if fault.moment == "stepping":
        return len(watch.steps) >= fault.n
    return fault.moment == "writing" and bool(watch.saves) and watch.writing()


def doing(watch: Watch, parent: int) -> str:
    """What a life is at."""
    if watch.steps:
        return "writing" if watch.writing() else "stepping"
    return "restoring" if reading(watch.run, parent) else "starting"


def reading(run: Path, parent: int) -> bool:
    """Whether one of the processes has a file of a checkpoint open."""
    for child in cluster.children(parent):
        for link in Path(f"/proc/{child}/fd").glob("*"):
            try:
                if os.readlink(link).startswith(str(run / CHECKPOINTS)):
                    return True
            except OSError:  # closed meanwhile, or the process has ended
                continue
    return False


def damage(run: Path, kind: str) -> dict[str, Any]:
    """Cuts the largest file of the newest checkpoint, or turns one bit in the middle of it."""
    newest = max((p for p in (run / CHECKPOINTS).glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    file = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = file.read_bytes()
    if kind == "cut":
        data = data[: len(data) // 2]
    else:
        data = bytearray(data)
        data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return {"kind": kind, "checkpoint": int(newest.name), "file": str(file.relative_to(newest))}


def missing(config: Path, run: Path, data: Path, kind: str, start: float) -> tuple[dict[str, Any], Life]:
    """Takes a shard away, or half of it, while a life steps and while the next one starts; then puts it back.

    What they said, and the first of them, which may train on what it has open.
    """
    shard = sorted(data.glob("train-*.array_record"))[0]
    kept = shard.with_suffix(".kept")
    shutil.copy(shard, kept)

    def harm() -> None:
        if kind == "removed":
            shard.unlink()
        else:
            os.truncate(shard, kept.stat().st_size // 2)

    try:
        first = live(config, run, Fault("SIGTERM", "stepping", STEPS_ON), start, harm)
        before = sorted(p.name for p in (run / CHECKPOINTS).iterdir())
        again = live(config, run, Fault("SIGTERM", "stepping", 10**6), start)
    finally:
        kept.replace(shard)
    return {
        "kind": kind,
        "file": shard.name,
        "meanwhile": {"code": first.code, "signalled": first.hit, "answer": first.said, "last_step": first.last_step},
        "code": again.code,
        "answer": again.said,
        "went_on_from": again.went_on_from,
        "checkpoints_untouched": before == sorted(p.name for p in (run / CHECKPOINTS).iterdir()),
    }, first


def reported(run: Path) -> int:
    """Steps that a run has reported."""
    path = run / metrics.FILE
    return len(metrics.read(path)) if path.exists() else 0


def first_step(run: Path) -> float:
    """Seconds between the writing of a run's config and its first report."""
    return metrics.read(run / metrics.FILE)[0]["time"] - (run.parent / "config.py").stat().st_mtime


if __name__ == "__main__":
    main()
