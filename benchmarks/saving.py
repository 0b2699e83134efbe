"""What saving costs a run: with checkpoints every so many seconds and without, taking turns.

    python -m benchmarks.saving --data data/emoji --step_seconds 0.7 [--save_seconds 60 --saves 3 --rounds 2]

Every run is launch.train, every step of it reported. What saving costs is the time that the steps of a run took
together, those of the other taken away; of it the loop itself waited "blocked" seconds for each checkpoint, while the
state was copied and orbax began, and was slowed by the writing for the rest.
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import config_file, results
from benchmarks.step_time import load_config
from lcm_jax.train import metrics

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/emoji_lcd.py")
    parser.add_argument("--data", required=True, help="latent folder")
    parser.add_argument("--work", default="runs/saving", help="a new folder")
    parser.add_argument("--save_seconds", type=float, default=60.0)
    parser.add_argument("--step_seconds", type=float, required=True, help="of a step, to turn seconds into steps")
    parser.add_argument("--saves", type=int, default=3, help="of each run")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()
    work = Path(args.work).absolute()
    work.mkdir(parents=True)
    every = max(1, round(args.save_seconds / args.step_seconds))
    steps = args.saves * every + every // 2  # the last checkpoint of a run, at its end, is not looked at
    data = str(Path(args.data).absolute())
    found: dict[str, list[dict[str, Any]]] = {"saving": [], "without": []}
    for turn in range(args.rounds):
        for name, between in (("saving", every), ("without", 10**9))[:: 1 if turn % 2 == 0 else -1]:
            config = config_file.train(load_config(args.config), steps, data, args.batch_size, between)
            found[name].append(timed(config, work / f"{name}-{turn}"))
            print(f"round {turn + 1}, {name}: {found[name][-1]}", flush=True)
    total = lambda name: statistics.median(run["seconds"] for run in found[name])
    blocked = [seconds for run in found["saving"] for seconds in run["blocked"]]
    values = {
        "steps": steps,
        "checkpoint_steps": every,
        "interval_seconds": every * total("without") / (steps - 2),
        "overhead": total("saving") / total("without") - 1,
        "blocked_seconds": statistics.median(blocked),
        "blocked_share": args.saves * statistics.median(blocked) / total("without"),
        "runs": found,
    }
    results.save("saving", {**{k: v for k, v in vars(args).items() if k not in ("work", "data")}, **values})


def timed(config: Any, where: Path) -> dict[str, Any]:
    """Seconds between the first report and the last, and those for which each checkpoint held the loop up."""
    file = config_file.write(config, where.with_suffix(".py"))
    with where.with_suffix(".log").open("wb") as log:
        call = [sys.executable, "-m", "launch.train", f"--config={file}", f"--run={where}"]
        subprocess.run(call, cwd=ROOT, stdout=log, stderr=log, check=True)
    rows = metrics.read(where / metrics.FILE)[:-1]
    steps = [b["time"] - a["time"] for a, b in zip(rows, rows[1:], strict=False)]
    return {
        "seconds": sum(steps),
        "step_seconds": statistics.median(steps),
        "blocked": [row["save/seconds"] for row in rows if row.get("save/seconds")],
    }


if __name__ == "__main__":
    main()
