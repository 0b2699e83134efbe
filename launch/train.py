"""Trains what a config says, or goes on where the run stopped.

    python -m launch.train --config configs/emoji_lcd.py --run runs/lcd [--config.steps=500 ...]
    python -m launch.train --config configs/lcd_sd15.py:paper --dry_run --devices 8    # launch.plan: on other machines

As one process, or as one of several: --coordinator host:port --process_id I --process_count N, or as Slurm, Open MPI,
Cloud TPU, launch.gke and launch.local_cluster set them. A run that a signal stopped before its last step exits with
LCM_JAX_STOPPED_STATUS (0), by which a scheduler may know that it is to be started again.
"""

import os
import sys

from absl import flags
from ml_collections import config_flags

from launch import entry, several

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file.", lock_config=True)
RUN = flags.DEFINE_string("run", None, "Folder of the run; made if it is not there, gone on with if it is.")
DEVICES = flags.DEFINE_integer("devices", None, "Simulated devices to rehearse on.", lower_bound=1)
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Say what it takes on these devices and train nothing; see launch.plan.")
PROFILE = flags.DEFINE_string("profile", None, "Steps to record, as 10:15, for TensorBoard or Perfetto.")
flags.mark_flag_as_required("config")


def main() -> None:
    if DEVICES.value is not None:
        entry.simulate(DEVICES.value)
    if DRY_RUN.value:
        return plan()
    if RUN.value is None:
        entry.stop("give --run, the folder of the run, or --dry_run")
    entry.folder(RUN)
    with several.joined():
        from lcm_jax import build, run_folder

        state = run_folder.train(build.run(CONFIG.value), RUN.value, profile=recorded(PROFILE.value))
        stopped = int(state.step) < CONFIG.value.steps
    if stopped:
        sys.exit(int(os.environ.get("LCM_JAX_STOPPED_STATUS", 0)))


def plan() -> None:
    """What launch.plan says of the devices that are here, or simulated, without a compiler."""
    from lcm_jax import plan_report

    print("\n".join(plan_report.forecast(CONFIG.value, plan_report.here(), "none").lines()))


def recorded(steps: str | None) -> tuple[int, int] | None:
    """The first and the last step of "10:15"."""
    if steps is None:
        return None
    first, colon, last = steps.partition(":")
    if not (colon and first.isdigit() and last.isdigit()):
        entry.stop(f"--profile {steps!r} is no range of steps, such as 10:15")
    return int(first), int(last)


if __name__ == "__main__":
    entry.run(main)
