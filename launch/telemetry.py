"""Shows what the loss of a consistency run is made of, noise level by noise level: telemetry.json and telemetry.png.

    python -m launch.telemetry --checkpoint runs/slct
"""

from absl import flags

from launch import entry

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of launch.train on noise levels.")
BATCHES = flags.DEFINE_integer("batches", 4, "Batches a noise level is measured on.", lower_bound=1)
LEVELS = flags.DEFINE_integer("levels", 12, "Noise levels that are measured.", lower_bound=2)
OUT = flags.DEFINE_string("out", None, "Folder of the results; the run's own by default.")
flags.mark_flag_as_required("checkpoint")


def main() -> None:
    if OUT.value is not None:
        entry.folder(OUT)
    from lcm_jax.assess import telemetry

    out = OUT.value or entry.on_this_machine(CHECKPOINT.value)
    print(telemetry.show(CHECKPOINT.value, out, BATCHES.value, LEVELS.value))


if __name__ == "__main__":
    entry.run(main)
