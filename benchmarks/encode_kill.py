"""Kills an encoding again and again and checks that it ends, byte for byte, with the folder of an undisturbed one.

    python -m benchmarks.encode_kill [--processes 1,2,3] [--kills 5] [--work runs/encode_kill] [--seed 0]

launch.encode makes latents of the flags among the emoji, once as one process that is left alone, and once as lives of
one process or several in turn, under launch.local_cluster. In each life but the last one process gets SIGKILL at a
moment drawn from the seed, after some of the shards that life finishes; all end, and the next life goes on.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks import cluster, results
from lcm_jax.data import manifest, resume

ROOT = Path(__file__).parents[1]
POLL = 0.005  # seconds between two looks
COLUMNS = ("processes", "killed", "ended_with", "finished_before", "finished_after", "begun_in_vain", "seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", default="1,2,3", help="of the lives, in turn")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--shard_size", type=int, default=4)
    parser.add_argument("--work", default="runs/encode_kill", help="a new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="encode_kill")
    args = parser.parse_args()
    work = Path(args.work).absolute()
    work.mkdir(parents=True)
    lives = prove(work, [int(count) for count in args.processes.split(",")], args.kills, args.shard_size, args.seed)
    compared = compare(work / "whole", work / "broken")
    # the comparison can see: no life before the last one left an equal folder
    equal = compared["different_files"] == 0 and not any(life["equal"] for life in lives[1:-1])
    print(table(lives))
    kept = {k: v for k, v in vars(args).items() if k not in ("work", "name")}
    results.save(args.name, {**kept, "equal": equal, "compared": compared, "lives": lives})
    if not equal:
        sys.exit("error: the killed encoding did not end with the folder of the undisturbed one")


def prove(work: Path, processes: list[int], kills: int, shard_size: int, seed: int) -> list[dict[str, Any]]:
    """The life of the undisturbed folder and those of the killed one; RuntimeError if one ends otherwise than meant."""
    rng, lives = random.Random(seed), [live(work, "whole", 1, shard_size)]
    total, left = len(manifest.read(work / "whole").shards), kills
    pace = lives[0]["seconds"] / total
    for count in islice(cycle(processes), kills):
        finished = lives[-1]["finished_after"] if left < kills else 0
        waits = rng.randint(0, (total - finished) // left - 1)
        lives.append(live(work, "broken", count, shard_size, rng.randrange(count), waits, rng.random() * pace))
        lives[-1]["equal"] = compare(work / "whole", work / "broken")["different_files"] == 0
        left -= 1
    return [*lives, live(work, "broken", next(islice(cycle(processes), kills, None)), shard_size)]


def live(
    work: Path, name: str, count: int, shard_size: int, victim: int | None = None, waits: int = 0, more: float = 0.0
) -> dict[str, Any]:
    """One life of `count` processes: to its end, or to SIGKILL for one `more` seconds after `waits` new shards."""
    out, log = work / name, work / f"{name}-{len(list(work.glob('*.log')))}.log"
    encode = ["launch.encode", "--reader=twemoji", "--options=tag=flag", f"--shard_size={shard_size}", f"--out={out}"]
    command = cluster.together(count, ["-m", *encode])
    finished = lambda: len(list(out.glob(resume.NOTE.format("*"))))
    before, begun = finished(), time.monotonic()
    with log.open("wb") as stream:
        life = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream, start_new_session=True)
    try:
        run = out / resume.PROGRESS
        changed = lambda: run.stat().st_mtime_ns if run.exists() else 0
        since = changed()
        while victim is not None and not (changed() > since and finished() >= before + waits):
            if life.poll() is not None:
                raise RuntimeError(f"a life ended before its kill: see {log}")
            time.sleep(POLL)
        if victim is not None:
            time.sleep(more)
            os.kill(cluster.children(life.pid)[victim], signal.SIGKILL)
        status = life.wait(timeout=600)
    finally:
        for process in [*cluster.children(life.pid), life.pid] if life.poll() is None else []:
            os.kill(process, signal.SIGKILL)
    if status != (0 if victim is None else 128 + signal.SIGKILL):
        raise RuntimeError(f"a life ended with {status}: see {log}")
    return {
        "processes": count,
        "killed": victim,
        "ended_with": status,
        "finished_before": before,  # shards
        "finished_after": finished() if victim is not None else len(manifest.read(out).shards),
        "begun_in_vain": len(list(out.glob("*.array_record.*.partial"))),
        "seconds": round(time.monotonic() - begun, 1),
        "equal": victim is None,
    }


def compare(one: Path, other: Path) -> dict[str, int]:
    """Files and bytes of a folder, and how many files another lacks, has beside them, or has with other bytes."""
    a, b = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (one, other))
    differ = [name for name in a.keys() | b.keys() if a.get(name) != b.get(name)]
    return {"files": len(a), "bytes": sum(map(len, a.values())), "different_files": len(differ)}


def table(lives: list[dict[str, Any]]) -> str:
    """The lives as a table."""
    lines = [[name.replace("_", " ") for name in COLUMNS], ["---"] * len(COLUMNS)]
    lines += [["" if life[name] is None else str(life[name]) for name in COLUMNS] for life in lives]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
