"""Draws the grid that shows what distillation bought: teacher at 50, 2, 4 steps, student at 1, 2, 4, 8.

    python -m launch.compare --checkpoint runs/lcd --teacher emoji-teacher --out grid.png [--prompt "a blue cat" ...]
"""

from absl import flags

from launch import entry, opening

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of the student; or give --model.")
MODEL = flags.DEFINE_string("model", None, "Exported folder of the student.")
WEIGHTS = flags.DEFINE_enum("weights", "ema", ["ema", "params", "target"], "Which weights of a run.")
EMA = flags.DEFINE_string("ema", None, "Average of a run that keeps several, as 0.9999 or power0.1; else the first.")
STEP = flags.DEFINE_string("step", None, "Step of a run's checkpoint, or best; the newest if left out.")
TEACHER = flags.DEFINE_string("teacher", None, "Model the student was distilled from.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "A row; repeat it. Held-out captions and free text if left out.")
READER = flags.DEFINE_string("reader", "twemoji", "Reader whose held-out captions are the first rows.")
W = flags.DEFINE_float("w", None, "Guidance w of the student (others' scale - 1); the middle of its range if left out.")
TEACHER_W = flags.DEFINE_float("teacher_w", None, "Guidance w of the teacher; the student's if left out.")
SEED = flags.DEFINE_integer("seed", 0, "One start a row.")
OUT = flags.DEFINE_string("out", None, "PNG to write.")
flags.mark_flags_as_required(["teacher", "out"])
flags.mark_flags_as_mutual_exclusive(["checkpoint", "model"], required=True)


def main() -> None:
    entry.picture(OUT)
    from lcm_jax import run_folder
    from lcm_jax.assess import comparison

    weights, how = entry.weights(WEIGHTS, EMA, CHECKPOINT), opening.how()
    student = run_folder.captioned(CHECKPOINT.value or MODEL.value, entry.step(STEP, CHECKPOINT), weights, **how)
    teacher = run_folder.captioned(TEACHER.value, **how)
    prompts = PROMPT.value or comparison.default_prompts(READER.value)
    print(comparison.compare(student, teacher, prompts, OUT.value, W.value, TEACHER_W.value, SEED.value))


if __name__ == "__main__":
    entry.run(main)
