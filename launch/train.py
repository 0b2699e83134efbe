"""Trains what a config says, or goes on where the run stopped.

    python -m launch.train --config configs/emoji_lcd.py --run runs/lcd [--config.steps=500 ...]
    python -m launch.train --config configs/lcd_sdxl.py:paper --dry_run --devices 16
"""

from absl import flags
from ml_collections import config_flags

from launch import entry

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file.", lock_config=True)
RUN = flags.DEFINE_string("run", None, "Folder of the run; made if it is not there, gone on with if it is.")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "Trace the step and print parameters, memory and operations; train not.")
DEVICES = flags.DEFINE_integer("devices", None, "Devices to plan for, with --dry_run.", lower_bound=1)
flags.mark_flag_as_required("config")


def main() -> None:
    if RUN.value is None and not DRY_RUN.value:
        entry.stop("give --run, the folder of the run, or --dry_run")
    if DEVICES.value is not None and not DRY_RUN.value:
        entry.stop("--devices is for --dry_run: a run takes the devices that are there (config.mesh divides them)")
    if DRY_RUN.value:
        entry.simulate(DEVICES.value)
        from lcm_jax import planning

        print(planning.plan(CONFIG.value).table())
        return
    from lcm_jax import build, run_folder

    run_folder.train(build.run(CONFIG.value), RUN.value)


if __name__ == "__main__":
    entry.run(main)
