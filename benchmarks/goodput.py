"""Share of the time that counted, of a run of two processes that is killed again and again.

    python -m benchmarks.goodput --data data/emoji --step_seconds 0.6 [--minutes 30 --kills 5 --save_seconds 60]

launch.local_cluster runs launch.train; at moments drawn from the seed one of its processes gets SIGKILL, all of them
end, and the same command is given again. What counts are steps whose outcome the run still has at the end
(assess.run_record); restarts count against it. Beside it what such kills must cost at least: half the time
between two checkpoints and a restart each. A goodput more than NEAR below that ends with an error.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import cluster, config_file, results
from benchmarks.step_time import load_config
from lcm_jax.assess.run_record import run_record
from lcm_jax.train import metrics

ROOT = Path(__file__).parents[1]
POLL = 0.2  # seconds between two looks
ENDLESS = 10**6  # steps: the clock ends the run
NEAR = 0.02  # of the wall time
SETTLE = 120.0  # seconds of the first life in which the pace is taken, before anything is killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji_lcd.py")
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value changes of the config")
    parser.add_argument("--data", required=True, help="latent folder")
    parser.add_argument("--work", default="runs/goodput", help="a new folder")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--save_seconds", type=float, default=60.0)
    parser.add_argument("--step_seconds", type=float, required=True, help="of a step, to turn seconds into steps")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="goodput")
    args = parser.parse_args()
    work = Path(args.work).absolute()
    work.mkdir(parents=True)
    every = max(1, round(args.save_seconds / args.step_seconds))  # steps between checkpoints
    data = str(Path(args.data).absolute())
    config = config_file.train(load_config(args.config, args.set), ENDLESS, data, args.batch_size, every)
    file = config_file.write(config, work / "config.py")
    train = ["-m", "launch.train", f"--config={file}", f"--run={work / 'run'}"]
    restarts = suffer(cluster.together(args.processes, train), work, args)
    record = run_record(work / "run")
    between = every * args.batch_size / record.median("images/s")
    found = {
        "goodput": record.goodput,
        "counted_seconds": record.counted,
        "wall_seconds": record.wall,
        "steps": record.step,
        "restart_seconds": restarts,
        "kills": args.kills,
        "between_saves": between,
        "bound": 1 - args.kills * (between / 2 + sum(restarts) / len(restarts)) / record.wall,
        "blocked_by_saving": record.total("save/seconds") / record.wall,
    }
    for name, value in found.items():
        print(f"{name:<20}{value}")
    results.save(args.name, {**{k: v for k, v in vars(args).items() if k not in ("work", "name")}, **found})
    if found["goodput"] < found["bound"] - NEAR:
        sys.exit(f"error: goodput is more than {NEAR:g} below its bound")


def suffer(started: list[str], work: Path, args: Any) -> list[float]:
    """Runs for args.minutes with args.kills kills; seconds from each start to the first report, of its second step."""
    rng, begun, restarts = random.Random(args.seed), time.time(), []
    end = begun + 60 * args.minutes
    part = (end - begun - SETTLE) / (args.kills + 1)
    moments = [begun + SETTLE + part * (i + rng.uniform(0.5, 1.5)) for i in range(args.kills)]
    for number, until in enumerate([*moments, end], 1):
        born = time.time()
        with (work / f"life-{number}.log").open("wb") as log:
            life = subprocess.Popen(started, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            while time.time() < until or first_step(work / "run", born) is None:
                if life.poll() is not None:
                    raise RuntimeError(f"life {number} ended by itself: see {work}/life-{number}.log")
                time.sleep(POLL)
            restarts.append(round(first_step(work / "run", born) - born, 1))
            if number <= args.kills:
                os.kill(rng.choice(cluster.children(life.pid)), signal.SIGKILL)
            else:
                life.send_signal(signal.SIGTERM)
            life.wait(timeout=120)
        finally:
            if life.poll() is None:
                for process in [*cluster.children(life.pid), life.pid]:
                    os.kill(process, signal.SIGKILL)
        print(f"life {number}: first report after {restarts[-1]} s, ended with {life.returncode}", flush=True)
    return restarts


def first_step(run: Path, since: float) -> float | None:
    """When the first line of metrics was written after `since`."""
    path = run / metrics.FILE
    times = [row["time"] for row in metrics.read(path) if row["time"] > since] if path.exists() else []
    return times[0] if times else None


if __name__ == "__main__":
    main()
