"""Trains what a config says, or goes on where the run stopped.

    python -m launch.train --config configs/emoji_lcd.py --run runs/lcd [--config.steps=500 ...]
"""

from absl import flags
from ml_collections import config_flags

from launch import entry

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file.", lock_config=True)
RUN = flags.DEFINE_string("run", None, "Folder of the run; made if it is not there, gone on with if it is.")
flags.mark_flag_as_required("config")
flags.mark_flag_as_required("run")


def main() -> None:
    from lcm_jax import build, run_folder

    run_folder.train(build.run(CONFIG.value), RUN.value)


if __name__ == "__main__":
    entry.run(main)
