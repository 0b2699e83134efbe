"""Trains what a config says, or goes on where the run stopped.

    python -m launch.train --config configs/emoji_lcd.py --run runs/lcd [--config.steps=500 ...]
    python -m launch.train --config configs/lcd_sdxl.py:paper --dry_run --devices 16

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
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Trace the step and print parameters, memory and operations; train not.")
DEVICES = flags.DEFINE_integer("devices", None, "Simulated devices to plan for or rehearse on.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    if RUN.value is None and not DRY_RUN.value:
        entry.stop("give --run, the folder of the run, or --dry_run")
    if DRY_RUN.value or DEVICES.value is not None:
        entry.simulate(DEVICES.value)
    if DRY_RUN.value:
        from lcm_jax import planning

        print(planning.plan(CONFIG.value).table())
        return
    with several.joined():
        from lcm_jax import build, run_folder

        state = run_folder.train(build.run(CONFIG.value), RUN.value)
        stopped = int(state.step) < CONFIG.value.steps
    if stopped:
        sys.exit(int(os.environ.get("LCM_JAX_STOPPED_STATUS", 0)))


if __name__ == "__main__":
    entry.run(main)
