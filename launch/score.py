"""FID and CLIP score of tens of thousands of pictures, as published tables have them.

    python -m launch.score --config configs/evaluation_paper.py --model LCM --teacher TEACHER \\
        --prompts prompts.txt --real PICTURES --config.clip=CLIP --out scores

--real is a folder of pictures (below it, too), --prompts a text file with a prompt a line. Interrupted, it goes on
with the row of the table it stopped in.
"""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import entry, opening, several

CONFIG = config_flags.DEFINE_config_file("config", None, "Protocol.", lock_config=True)
MODEL = flags.DEFINE_string("model", None, "Student: a run, or any model that launch.sample takes.")
TEACHER = flags.DEFINE_string("teacher", None, "Teacher to set beside it.")
DTYPE = flags.DEFINE_string("dtype", None, "What U-Nets compute in: float32, bfloat16 or float16.")
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a prompt a line.")
REAL = flags.DEFINE_string("real", None, "Folder of real pictures.")
OUT = flags.DEFINE_string("out", None, "Folder for the scores.")
flags.mark_flags_as_required(["config", "model", "prompts", "real", "out"])


def main() -> None:
    with several.joined():
        score()


def score() -> None:
    """The table; of several processes each draws and looks at its share of the pictures."""
    import jax

    from lcm_jax import captions, run_folder
    from lcm_jax.assess import protocol
    from lcm_jax.machine import machine

    prompts = captions.read(PROMPTS.value)
    how = {"dtype": DTYPE.value, **opening.how()}
    pipes = {"student": run_folder.pipeline(MODEL.value, **how)}
    if TEACHER.value is not None:
        pipes["teacher"] = run_folder.pipeline(TEACHER.value, **how)
    real = protocol.real_pictures(REAL.value, pipes["student"].spec.image_size)
    protocol.run(CONFIG.value.to_dict(), pipes, prompts, real, OUT.value, {"machine": machine()})
    if jax.process_index() == 0:
        print((Path(OUT.value) / "table.md").read_text())


if __name__ == "__main__":
    entry.run(main)
