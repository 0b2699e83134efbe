"""Draws pictures for prompts: a PNG each and a grid, all with their settings in the PNG's metadata.

    python -m launch.sample --checkpoint runs/lcd --prompt "a red heart" --steps 4 --w 2
    python -m launch.sample --model emoji-teacher --prompt "a blue cat" --sampler dpmpp_2m --guidance 3

--w is LCM's guidance, cond + w (cond - uncond); --guidance is the usual scale, w + 1.
"""

from pathlib import Path

from absl import flags

from launch import entry

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of launch.train.")
MODEL = flags.DEFINE_string("model", None, "Exported folder, or a shipped model's name.")
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; repeatable.")
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a prompt a line.")
STEPS = flags.DEFINE_integer("steps", None, "Steps; 4 for a consistency model, 50 for a teacher.")
W = flags.DEFINE_float("w", None, "Guidance w; the middle of the trained range, 2 for a teacher.")
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale, w + 1; instead of --w.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed and prompt give the same pictures, whatever else is drawn.")
N = flags.DEFINE_integer("n", 16, "Pictures of each prompt.")
SAMPLER = flags.DEFINE_string(
    "sampler", None, "lcm, or for a teacher ddim, ddim_leading, dpm_solver, dpm_solver_pp, dpmpp_2m, heun."
)
WEIGHTS = flags.DEFINE_string("weights", "ema", "ema, params or target of --checkpoint.")
STEP = flags.DEFINE_integer("step", None, "Training step of --checkpoint; the newest by default.")
OUT = flags.DEFINE_string("out", "samples", "Folder for the pictures.")


def main() -> None:
    if (CHECKPOINT.value is None) == (MODEL.value is None):
        entry.stop("give either --checkpoint RUN or --model FOLDER")
    if W.value is not None and GUIDANCE.value is not None:
        entry.stop("--w and --guidance exclude each other: guidance is w + 1")
    if MODEL.value is not None and (STEP.present or WEIGHTS.present):
        entry.stop("--step and --weights choose among the weights of --checkpoint; a model folder has one set")
    prompts = list(PROMPT.value)
    if PROMPTS.value is not None:
        prompts += [line.strip() for line in Path(PROMPTS.value).read_text().splitlines() if line.strip()]
    if not prompts:
        entry.stop("nothing to draw: give --prompt or a --prompts file")
    w = W.value if GUIDANCE.value is None else GUIDANCE.value - 1
    from lcm_jax import drawing, run_folder
    from lcm_jax.pipeline import Pipeline

    if MODEL.value is not None:
        pipe = Pipeline.load(MODEL.value)
    else:
        pipe = run_folder.pipeline(CHECKPOINT.value, STEP.value, WEIGHTS.value)
    chosen = {"steps": STEPS.value, "w": w, "seed": SEED.value, "sampler": SAMPLER.value}
    grid, made = drawing.draw(pipe, prompts, OUT.value, n=N.value, **chosen)
    print(f"{made['sampler']}, {made['steps']} steps ({made['evaluations']} network evaluations), seed {made['seed']}")
    print(f"w {made['w']:g}, guidance scale {made['guidance']:g}")
    print(grid)


if __name__ == "__main__":
    entry.run(main)
