"""Runs one command on every worker of a Cloud TPU VM, where jax finds the others by itself.

    python -m launch.tpu_vm --tpu NAME --zone ZONE -- python -m launch.train --config ... --run ...

Checkout, environment and data must be on every worker already (the same command with `git clone`, `pip install`), the
folder of the run on storage that all share. Ctrl-C ends the connection: to stop with a checkpoint send SIGTERM on any
one worker. --print shows the command and runs nothing.
"""

import shlex
import subprocess

from absl import flags

from launch import entry

TPU = flags.DEFINE_string("tpu", None, "Name of the TPU VM, or of a slice of many.")
ZONE = flags.DEFINE_string("zone", None, "Its zone.")
PROJECT = flags.DEFINE_string("project", None, "Its project, if not gcloud's own.")
FOLDER = flags.DEFINE_string("folder", "lcm_jax", "The checkout on the workers.")
SETUP = flags.DEFINE_multi_string("setup", [], "Shell before the command, such as '. .venv/bin/activate'.")
PRINT = flags.DEFINE_bool("print", False, "Show the command, and run nothing.")
flags.mark_flags_as_required(["tpu", "zone"])


def main(command: list[str]) -> None:
    words = gcloud(command, TPU.value, ZONE.value, PROJECT.value, FOLDER.value, SETUP.value)
    if PRINT.value:
        print(shlex.join(words))
        return
    try:
        raise SystemExit(subprocess.run(words).returncode)
    except FileNotFoundError:
        entry.stop("there is no gcloud here: install the Google Cloud CLI, or take --print")


def gcloud(
    command: list[str], tpu: str, zone: str, project: str | None, folder: str, setup: list[str]
) -> list[str]:
    """The words of the gcloud command."""
    there = " && ".join([f"cd {shlex.quote(folder)}", *setup, f"exec {shlex.join(command)}"])
    where = [f"--zone={zone}", *([f"--project={project}"] if project else [])]
    return ["gcloud", "compute", "tpus", "tpu-vm", "ssh", tpu, *where, "--worker=all", f"--command={there}"]


if __name__ == "__main__":
    entry.run_around(main)
