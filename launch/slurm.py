"""Submits a run to Slurm: one process a node, which sees all GPUs of its node.

    python -m launch.slurm --nodes 4 --gpus 8 --time 24:00:00 -- python -m launch.train --config ... --run ...

Two minutes before its time is over, or when it is preempted, the job saves, and queues itself again to go on. The
folder of the run must lie on storage that all nodes share. --print shows the script and submits nothing.
"""

import os
import shlex
import subprocess

from absl import flags

from launch import entry

NODES = flags.DEFINE_integer("nodes", 1, "Nodes, each a process.", lower_bound=1)
GPUS = flags.DEFINE_integer("gpus", 8, "GPUs a node.", lower_bound=1)
TIME = flags.DEFINE_string("time", "24:00:00", "Longest time of one job, as Slurm reads it.")
NAME = flags.DEFINE_string("name", "lcm_jax", "Name of the job.")
PORT = flags.DEFINE_integer("port", 8476, "Where the first node listens.")
SETUP = flags.DEFINE_multi_string("setup", [], "A line of shell before the command, such as '. .venv/bin/activate'.")
SBATCH = flags.DEFINE_multi_string("sbatch", [], "Another option of sbatch, such as --partition=gpu.")
PRINT = flags.DEFINE_bool("print", False, "Show the script, and submit nothing.")

STOPPED = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
WARNING = 120  # seconds from SIGTERM to the end of the job's time


def main(command: list[str]) -> None:
    text = script(command, NODES.value, GPUS.value, TIME.value, NAME.value, PORT.value, SETUP.value, SBATCH.value)
    if PRINT.value:
        print(text, end="")
        return
    try:
        done = subprocess.run(["sbatch"], input=text, text=True)
    except FileNotFoundError:
        entry.stop("there is no sbatch here: run this on a login node, or take --print")
    raise SystemExit(done.returncode)


def script(
    command: list[str], nodes: int, gpus: int, time: str, name: str, port: int, setup: list[str], options: list[str]
) -> str:
    """The batch script: options, the first node's address, the command once a node, once more if it was stopped."""
    asked = [
        f"--job-name={name}",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--gpus-per-node={gpus}",
        "--exclusive",
        f"--time={time}",
        f"--signal=TERM@{WARNING}",
        "--requeue",
        "--open-mode=append",
        *options,
    ]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in asked),
        f"cd {shlex.quote(os.getcwd())}",
        *setup,
        "set -u",  # which scripts that are sourced there may not be written for
        'nodes=($(scontrol show hostnames "$SLURM_JOB_NODELIST"))',
        f'export JAX_COORDINATOR_ADDRESS="${{nodes[0]}}:{port}"',  # number and count of a process are srun's
        f"export LCM_JAX_STOPPED_STATUS={STOPPED}",
        f"srun --kill-on-bad-exit=0 {shlex.join(command)}",
        "status=$?",
        f'if [ "$status" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$status"',
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    entry.run_around(main)
