"""Writes a run's model as a folder of Flax weights that describes itself.

    python -m launch.export --checkpoint runs/lcd --out exported/lcd [--dtype float16]
"""

from absl import flags

from launch import entry

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of launch.train.")
OUT = flags.DEFINE_string("out", None, "Folder to make.")
DTYPE = flags.DEFINE_string("dtype", "float32", "float32, float16 or bfloat16.")
WEIGHTS = flags.DEFINE_string("weights", "ema", "ema (what the run's samples were drawn with), params or target.")
STEP = flags.DEFINE_integer("step", None, "Training step; the newest by default.")
MSGPACK = flags.DEFINE_bool("msgpack", True, "Write Flax msgpack beside safetensors.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier export in --out.")
flags.mark_flags_as_required(["checkpoint", "out"])


def main() -> None:
    from lcm_jax import run_folder

    out = run_folder.export(
        CHECKPOINT.value, OUT.value, DTYPE.value, WEIGHTS.value, STEP.value, OVERWRITE.value, MSGPACK.value
    )
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    entry.run(main)
