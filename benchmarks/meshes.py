"""One run on several meshes, of one process and of two: how far losses and parameters are from those of one device.

    python -m benchmarks.meshes --data data/emoji [--steps 20 --batch_size 16]

Distillation (LCD) and consistency training with optimal transport over the global batch (sLCT), by plain gradient
descent: Adam's first steps amplify rounding. Every run is launch.train as a user starts it, on simulated devices. A
loss is the distance of two nearly equal predictions, so its rounding grows as they get closer: LCD skips 200 times.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import cluster, config_file, results
from benchmarks.step_time import load_config
from lcm_jax import run_folder
from lcm_jax.train import metrics

ROOT = Path(__file__).parents[1]
ALONE = "1 process x 1 device"
MESHES: dict[str, tuple[int, int, dict[str, Any]]] = {  # processes, devices of each, mesh
    ALONE: (1, 1, {}),
    "1 x 8, data 8": (1, 8, {}),
    "2 x 4, data 8": (2, 4, {}),
    "1 x 8, fsdp 8": (1, 8, {"data": 1, "fsdp": 8, "rules": "fsdp"}),
    "1 x 8, data 2, fsdp 2, tensor 2": (1, 8, {"data": 2, "fsdp": 2, "tensor": 2, "rules": "fsdp_tensor"}),
    "2 x 4, data 2, fsdp 2, tensor 2": (2, 4, {"data": 2, "fsdp": 2, "tensor": 2, "rules": "fsdp_tensor"}),
}
RUNS = {  # config, changes, rate, network; slct couples over the global batch by default (transport_parts 1)
    "lcd": ("configs/emoji_lcd.py", ["objective.skip=200"], 0.01, "unet"),
    "slct": ("configs/emoji_slct.py", [], 1e-6, "network"),
}
LIMIT = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="latent folder")
    parser.add_argument("--work", default="runs/meshes", help="what is complete there is not run again")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--runs", default=",".join(RUNS), help="which of them")
    args = parser.parse_args()
    work = Path(args.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    data = str(Path(args.data).absolute())
    found = {name: compared(name, work / name, data, args.steps, args.batch_size) for name in args.runs.split(",")}
    print(table(found))
    equal = all(row["loss"] <= LIMIT and row["parameters"] <= LIMIT for rows in found.values() for row in rows.values())
    results.save("meshes", {"steps": args.steps, "batch_size": args.batch_size, "equal": equal, "runs": found})
    if not equal:
        sys.exit(f"error: a mesh is further than {LIMIT:g} from one device")


def compared(name: str, work: Path, data: str, steps: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Relative distances of every mesh's run from that of one device, in the Euclidean norm."""
    found, (file, changes, rate, network) = {}, RUNS[name]
    for mesh, (processes, devices, axes) in MESHES.items():
        config = config_file.train(load_config(file, changes), steps, data, batch_size, steps // 2)
        with config.unlocked():
            config.optimizer = ConfigDict({"name": "sgd", "rate": rate})
            config.mesh.update(axes)
        where = work / "".join(c if c.isalnum() else "_" for c in mesh)
        losses = reported(where)
        if len(losses) < steps:
            train(config, where, processes, devices)
            losses = reported(where)
        now = flat(where, network)
        if mesh == ALONE:
            first, whole, halfway = losses, now, flat(where, network, steps // 2)
        far = lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b))
        found[mesh] = {"loss": far(losses, first), "parameters": far(now, whole)}
        if mesh == ALONE:  # what there was to agree on: the second half of the run
            found[mesh]["moved"] = far(now, halfway)
        print(f"{name}, {mesh}: {found[mesh]}", flush=True)
    return found


def train(config: ConfigDict, where: Path, processes: int, devices: int) -> None:
    """launch.train of a config, in so many processes; its output goes to WHERE.log."""
    where.parent.mkdir(parents=True, exist_ok=True)
    file = config_file.write(config, where.with_suffix(".py"))
    command = cluster.together(processes, ["-m", "launch.train", f"--config={file}", f"--run={where}"], devices)
    with where.with_suffix(".log").open("wb") as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=True)


def reported(run: Path) -> np.ndarray:
    """The losses of a run's steps."""
    path = run / metrics.FILE
    return np.array([row["loss/mean"] for row in metrics.read(path)] if path.exists() else [])


def flat(run: Path, network: str, step: int | None = None) -> np.ndarray:
    """The trained weights of a run's checkpoint in one vector, float64."""
    leaves = jax.tree.leaves(run_folder.load(run, step, "params")[1][network])
    return np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(np.float64)


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The distances as a table."""
    lines = ["| | " + " | ".join(f"{name} loss | {name} parameters" for name in found) + " |"]
    lines.append("|---" * (1 + 2 * len(found)) + "|")
    for mesh in MESHES:
        cells = [f"{found[name][mesh][what]:.1e}" for name in found for what in ("loss", "parameters")]
        lines.append(f"| {mesh} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
