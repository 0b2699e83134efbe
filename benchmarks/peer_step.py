"""The LCD training step and 4-step sampling of lcm_jax beside PyTorch's (diffusers' networks) on this machine.

    python -m benchmarks.peer_step [--preset small|wide|sd15] [--batch 8] [--size 32] [--rounds 9] [--variants ...]

Both sides have the same weights and, in a first check, the same draws, and must come to the same loss, gradient
norm and images. Then they take turns, a step each, every side in its own process, idle while it waits; so whatever
else the machine does slows all of them. A step is all of LCM's algorithm 1: draws, guided teacher's DDIM step,
target, Huber loss, gradient, clip by the global norm, AdamW, the target's average and the one for sampling. Needs
torch and diffusers (the `test` extra). FLOPs are those of lcm_jax's step before XLA optimises it, for both sides.
"""

import argparse
import dataclasses
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np

from benchmarks import results
from benchmarks.peer_case import PRESETS, Case
from benchmarks.peer_process import Side
from lcm_jax.machine import cores

OURS = "lcm_jax"
JAX, TORCH = "benchmarks.peer_jax", "benchmarks.peer_torch"
TASKS = ("Training", "Sampling")
VARIANTS = ("eager", "eager, channels last", "compiled", "compiled, channels last")
TUNED = "tuned, channels last"  # torch.compile's own search: many minutes for a large network
# Share by which the sides may differ: of loss and gradient norm, of images' root mean square.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--size", type=int, help="of latents, pixels a side")
    parser.add_argument("--device", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", choices=TOLERANCE)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--variants", nargs="+", default=VARIANTS, choices=(*VARIANTS, TUNED), help="of PyTorch")
    parser.add_argument("--note", default="", help="kept with the result: what else the machine did, say")
    parser.add_argument("--name", default="peer_step")
    args = parser.parse_args()
    given = {k: getattr(args, k) for k in ("batch", "size", "device", "dtype") if getattr(args, k) is not None}
    case = dataclasses.replace(PRESETS[args.preset], threads=cores(), **given)
    set_environment(case)
    found = {"preset": args.preset, "case": dataclasses.asdict(case), "rounds": args.rounds, "note": args.note}
    found["versions_of_peer"] = {name: metadata.version(name) for name in ("torch", "diffusers")}
    found["gflops_ceilings"] = measure_ceilings(case)
    for task in args.tasks:
        found[task.lower()] = measure(task, case, args.rounds, args.variants)
        results.save(args.name, found)  # the next one may compile for longer than the machine is there
        print_table(task, found[task.lower()], found["gflops_ceilings"])


def measure(task: str, case: Case, rounds: int, variants: list[str]) -> dict:
    """Seconds, speed and memory of each side of one task, alternating."""
    reason = unable(case)
    left_out = {name: reason for name in variants if reason and not name.startswith("eager")}
    if len(left_out) == len(variants):
        raise ValueError(f"no variant of PyTorch is left to measure: {reason}; add an eager one to --variants")
    sides = {OURS: Side(JAX)} | {name: Side(TORCH) for name in variants if name not in left_out}
    try:
        with tempfile.TemporaryDirectory() as folder:
            build(task, case, sides, Path(folder))
            return {**compare(task, case, sides, rounds), "left_out": left_out}
    finally:
        for side in sides.values():
            side.close()


def build(task: str, case: Case, sides: dict[str, Side], folder: Path) -> None:
    """Every side's networks, with the same weights, written to `folder`, and its compiled functions."""
    sides[OURS].call("write_weights", case, folder)
    print(f"{task}: building {', '.join(sides)}", flush=True)

    def make(name: str) -> None:
        begun = time.perf_counter()
        sides[name].make(task, case, *([] if name == OURS else [folder, name]))
        print(f"{task}: {name} built in {time.perf_counter() - begun:.0f} s", flush=True)

    # Beside a GPU are cores enough to compile all at once.
    with ThreadPoolExecutor(len(sides) if case.device == "cuda" else 1) as pool:
        list(pool.map(make, sides))


def compare(task: str, case: Case, sides: dict[str, Side], rounds: int) -> dict:
    """Checks that all sides, built, do the same work, and lets them take turns."""
    peers = [name for name in sides if name != OURS]
    ours = sides[OURS].ask("check")
    differences = {name: check(task, case, ours, sides[name]) for name in peers}
    whole = {name: side.call("memory_mb", case) for name, side in sides.items()}
    for side in sides.values():
        side.call("forget_peak", case)
    seconds, worked = take_turns(sides, rounds)
    peaks = {name: side.call("memory_mb", case) for name, side in sides.items()}
    compiling = {name: side.ask("compile_seconds") for name, side in sides.items()}
    gflop = sides[OURS].ask("flops") / 1e9
    best = min(peers, key=lambda name: statistics.median(seconds[name]))
    ratios = [theirs / ours for theirs, ours in zip(seconds[best], seconds[OURS], strict=True)]
    rows = {
        name: {
            "seconds_quartiles": quartiles(seconds[name]),
            "processor_seconds_quartiles": quartiles(worked[name]),
            "images_per_second": case.batch / statistics.median(seconds[name]),
            "gflops": gflop / statistics.median(seconds[name]),
            "peak_memory_mb": peaks[name],
            "peak_memory_with_compilation_mb": max(whole[name], peaks[name]),
            "compile_seconds": compiling[name],
            **({} if name == OURS else {"difference": differences[name]}),
        }
        for name in sides
    }
    return {
        "gflop": gflop,
        "sides": rows,
        "best_of_pytorch": best,
        "speed_over_best_of_pytorch": statistics.median(seconds[best]) / statistics.median(seconds[OURS]),
        "speed_over_best_of_pytorch_by_round_quartiles": quartiles(ratios),
        # Says more than the clock where others want the processors: their threads wait for one another then.
        "processor_time_of_best_over_ours": statistics.median(worked[best]) / statistics.median(worked[OURS]),
    }


def measure_ceilings(case: Case) -> dict[str, dict[str, float]]:
    """GFLOP/s of a matrix product and a convolution in each framework, each in a process that does nothing else."""
    found = {}
    for name, module in ((OURS, JAX), ("pytorch", TORCH)):
        side = Side(module)
        try:
            found[name] = side.call("ceilings", case)
        finally:
            side.close()
    return found


def print_table(task: str, measured: dict, ceilings: dict) -> None:
    """One row a side, and the ratio that counts."""
    print(f"\n{task}: {measured['gflop']:.1f} GFLOP")
    head = ("", "seconds", "quartiles", "images/s", "GFLOP/s", "of matmul", "of conv", "peak MB", "compile s")
    print("{:26s}{:>9s}{:>16s}{:>10s}{:>9s}{:>11s}{:>9s}{:>9s}{:>11s}".format(*head))
    for name, row in measured["sides"].items():
        low, middle, high = row["seconds_quartiles"]
        top = ceilings[OURS if name == OURS else "pytorch"]
        print(
            f"{name:26s}{middle:9.3f}{f'{low:.3f} - {high:.3f}':>16s}{row['images_per_second']:10.2f}"
            f"{row['gflops']:9.1f}{row['gflops'] / top['matmul']:11.0%}{row['gflops'] / top['conv']:9.0%}"
            f"{row['peak_memory_mb']:9.0f}{row['compile_seconds']:11.1f}"
        )
    for name, reason in measured["left_out"].items():
        print(f"{name:26s}not run: {reason}")
    low, middle, high = measured["speed_over_best_of_pytorch_by_round_quartiles"]
    print(
        f"speed over PyTorch's best ({measured['best_of_pytorch']}): {measured['speed_over_best_of_pytorch']:.2f} "
        f"of medians; by round {middle:.2f}, quartiles {low:.2f} - {high:.2f}; "
        f"in processor time {measured['processor_time_of_best_over_ours']:.2f}"
    )


def set_environment(case: Case) -> None:
    """What must stand before the sides start, the same for both."""
    # Both would rather keep freed memory than ask for it anew: a fresh page costs a fault.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    os.environ.setdefault("MALLOC_TOP_PAD_", str(2**26))
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**33))
    os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", str(2**34))
    os.environ.setdefault("OMP_NUM_THREADS", str(case.threads))
    os.environ.setdefault("JAX_PLATFORMS", "cpu" if case.device == "cpu" else f"{case.device},cpu")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
    # Compile times are those of a first run.
    os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")
    os.environ.setdefault("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")


def unable(case: Case) -> str:
    """Why torch.compile cannot run here; empty where it can."""
    if case.device == "cuda":
        return "" if importlib.util.find_spec("triton") else "torch.compile needs triton"
    return "" if shutil.which(os.environ.get("CXX", "g++")) else "torch.compile needs a C++ compiler"


def check(task: str, case: Case, ours: dict, side: Side) -> dict[str, float]:
    """Relative differences between the sides' answers to the same draws; ValueError where they are too large."""
    if task == "Training":
        theirs = side.ask("check", ours)
        found = {name: abs(float(ours[name]) / theirs[name] - 1) for name in theirs}
    else:
        theirs = side.ask("check", ours["noise"])
        found = {"images": float(np.linalg.norm(ours["images"] - theirs) / np.linalg.norm(theirs))}
    if not max(found.values()) < TOLERANCE[case.dtype]:
        raise ValueError(f"the two sides differ by {found}, more than {TOLERANCE[case.dtype]}: not the same work")
    return found


def take_turns(sides: dict[str, Side], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each side's runs by the clock and of its processors, one run a round; the first is not counted.

    Each round is begun by another side.
    """
    seconds, worked = {name: [] for name in sides}, {name: [] for name in sides}
    order = list(sides)
    for i in range(rounds + 1):
        order = order[1:] + order[:1]
        for name in order:
            clock, processors = sides[name].timed()
            seconds[name].append(clock)
            worked[name].append(processors)
        print(f"round {i}: " + ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in sides), flush=True)
    return tuple({name: times[1:] for name, times in found.items()} for found in (seconds, worked))


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return [float(x) for x in np.quantile(values, (0.25, 0.5, 0.75))]


if __name__ == "__main__":
    main()
