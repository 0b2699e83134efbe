"""Trains what a config says, or goes on where the run stopped.

    python -m launch.train --config configs/emoji_lcd.py --run runs/lcd [--config.steps=500 ...]
"""

import logging
import sys

from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file.", lock_config=True)
RUN = flags.DEFINE_string("run", None, "Folder of the run; made if it is not there, gone on with if it is.")
flags.mark_flags_as_required(["config", "run"])


def main(argv: list[str]) -> None:
    if argv[1:]:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; settings are --config.SECTION.KEY=VALUE")
    from lcm_jax import build, run_folder

    logging.getLogger("absl").setLevel(logging.WARNING)
    try:
        run_folder.train(build.run(CONFIG.value), RUN.value)
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
