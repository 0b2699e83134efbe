"""Draws pictures for prompts: a PNG each and a grid, all with their settings in the PNG's metadata.

    python -m launch.sample --checkpoint runs/lcd --prompt "a red heart" --steps 4 --w 2
    python -m launch.sample --model emoji-teacher --prompt "a blue cat" --sampler dpmpp_2m --guidance 3
    python -m launch.sample --model FOLDER --dtype bfloat16 --prompts prompts.txt --negative_prompt ugly --size 768x512
    python -m launch.sample --model FOLDER --prompt "a cat" --lora lcm.safetensors --lora style.safetensors:0.8 \\
        --sampler lcm --steps 4 --w 0
    python -m launch.sample --model FOLDER --prompt "in oil" --image photo.png --strength 0.5
    python -m launch.sample --checkpoint runs/emoji_slct --n 64 --sigmas 80,0.5      # a model without captions
    python -m launch.sample --checkpoint runs/classes --n 64 --label "Food & Drink"  # one of classes

Started as several processes, as launch.train is, each draws its share of the prompts on all of its devices.

--w is LCM's guidance, cond + w (cond - uncond); --guidance is the usual scale, w + 1.
"""

from typing import Any

from absl import flags

from launch import entry, opening, several

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of launch.train.")
MODEL = flags.DEFINE_string(
    "model", None, "Folder of launch.export or of diffusers, a single file, a name on the hub or of a shipped model."
)
LORA = flags.DEFINE_multi_string(
    "lora", [], "LoRA file to merge in, FILE or FILE:STRENGTH; repeatable. With --sampler lcm one is an LCM-LoRA."
)
DTYPE = flags.DEFINE_string("dtype", None, "What --model's U-Net computes in: float32, bfloat16 or float16.")
ATTENTION = flags.DEFINE_enum(
    "attention", "auto", ["auto", "xla", "cudnn"], "auto: cuDNN's kernel where GPU, dtype and heads allow, else XLA's."
)
PROMPT = flags.DEFINE_multi_string("prompt", [], "What to draw; repeatable.")
PROMPTS = flags.DEFINE_string("prompts", None, "Text file with a prompt a line; pictures that are there are kept.")
NEGATIVE = flags.DEFINE_string("negative_prompt", None, "What not to draw; for teachers guided by w > 0.")
STEPS = flags.DEFINE_integer("steps", None, "Steps; 4 for a consistency model, 50 for a teacher.", lower_bound=1)
W = flags.DEFINE_float(
    "w", None, "Guidance w; the middle of the trained range, for a teacher with CLIP 6.5 (guidance scale 7.5), else 2."
)
GUIDANCE = flags.DEFINE_float("guidance", None, "Guidance scale, w + 1; instead of --w.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed and prompt give the same pictures, whatever else is drawn.")
N = flags.DEFINE_integer("n", 16, "Pictures of each prompt.", lower_bound=1)
SIZE = flags.DEFINE_string("size", None, "Pixels of a picture, 512 or WIDTHxHEIGHT; the model's own by default.")
ORIGINAL_SIZE = flags.DEFINE_string("original_size", None, "Size of the original that SDXL is told of; --size if not.")
CROP = flags.DEFINE_string("crop", None, "Where SDXL is told that the original was cropped, LEFTxTOP; 0x0 if not.")
TARGET_SIZE = flags.DEFINE_string("target_size", None, "Size that SDXL is told it was cropped to; --size if not.")
IMAGE = flags.DEFINE_string("image", None, "Picture to change instead of drawing from nothing.")
STRENGTH = flags.DEFINE_float("strength", 0.6, "How much of --image is drawn anew, in (0, 1].")
SIGMAS = flags.DEFINE_list("sigmas", None, "Falling noise levels of a consistency model without captions, one a step.")
LABEL = flags.DEFINE_string("label", None, "Class of a model without captions, by name or number; else all in turn.")
TILE = flags.DEFINE_integer(
    "tile", None, "Encode and decode in tiles of this many pixels a side: large pictures.", lower_bound=1
)
BATCH = flags.DEFINE_integer("batch", None, "Pictures a call; by default as their size allows.", lower_bound=1)
SAMPLER = flags.DEFINE_string(
    "sampler", None, "lcm, or for a teacher ddim, ddim_leading, dpm_solver, dpm_solver_pp, dpmpp_2m, heun."
)
WEIGHTS = flags.DEFINE_string("weights", "ema", "ema, params or target of --checkpoint.")
EMA = flags.DEFINE_string("ema", None, "Average of a run that keeps several, as 0.9999 or power0.1; else the first.")
STEP = flags.DEFINE_string("step", None, "Training step of --checkpoint, or best; the newest by default.")
OUT = flags.DEFINE_string("out", "samples", "Folder for the pictures.")


def main() -> None:
    entry.folder(OUT)
    if (CHECKPOINT.value is None) == (MODEL.value is None):
        entry.stop("give either --checkpoint RUN or --model FOLDER")
    if W.value is not None and GUIDANCE.value is not None:
        entry.stop("--w and --guidance exclude each other: guidance is w + 1")
    if MODEL.value is not None and (STEP.present or WEIGHTS.present or EMA.present):
        entry.stop("--step, --weights and --ema choose among the weights of --checkpoint; a model folder has one set")
    weights = entry.weights(WEIGHTS, EMA, CHECKPOINT)
    if not takes_captions():
        return from_noise(weights)
    if SIGMAS.present:
        entry.stop("--sigmas is for models of noise levels, without captions; this one takes --steps")
    if LABEL.present:
        entry.stop("--label is for models of noise levels, without captions; this one takes --prompt")
    prompts = list(PROMPT.value)
    if PROMPTS.value is not None:
        from lcm_jax import captions

        prompts += captions.read(PROMPTS.value)
    if not prompts:
        entry.stop("nothing to draw: give --prompt or a --prompts file")
    if STRENGTH.present and IMAGE.value is None:
        entry.stop("--strength is for --image: how much of it is drawn anew")
    if CHECKPOINT.value is not None and (DTYPE.present or opening.given()):
        entry.stop("--variant, --dtype, --kind and --empty_caption are for --model")
    with several.joined():
        from_prompts(prompts, W.value if GUIDANCE.value is None else GUIDANCE.value - 1, weights)


def from_prompts(prompts: list[str], w: float | None, weights: str) -> None:
    """Pictures of prompts; of several processes each draws its own."""
    import jax

    from lcm_jax import drawing, run_folder
    from lcm_jax.pipeline import Pipeline
    from lcm_jax.setting import SizeIds

    chosen = {"steps": STEPS.value, "w": w, "seed": SEED.value, "sampler": SAMPLER.value, "tile": TILE.value}
    chosen |= {"negative_prompt": NEGATIVE.value, "size": pair(SIZE), "batch": BATCH.value}
    told = {"original": pair(ORIGINAL_SIZE), "crop": pair(CROP, 0), "target": pair(TARGET_SIZE)}
    chosen["ids"] = SizeIds(**{name: given for name, given in told.items() if given is not None})
    if IMAGE.value is not None:
        chosen |= {"image": IMAGE.value, "strength": STRENGTH.value}
    if MODEL.value is not None:
        pipe = Pipeline.load(MODEL.value, DTYPE.value, **opening.how(), attention=ATTENTION.value)
    else:
        pipe = run_folder.pipeline(CHECKPOINT.value, entry.step(STEP, CHECKPOINT), weights, attention=ATTENTION.value)
    if LORA.value:
        from lcm_jax import adapting

        pipe = adapting.adapted(pipe, [adapting.parse(given) for given in LORA.value], SAMPLER.value == "lcm")
    grid, made = drawing.draw(pipe, prompts, OUT.value, n=N.value, **chosen)
    if jax.process_index():
        return
    print(f"{made['sampler']}, {made['steps']} steps ({made['evaluations']} network evaluations), seed {made['seed']}")
    print(f"w {made['w']:g}, guidance scale {made['guidance']:g}")
    print(grid)


# What has no meaning without captions.
TEXT_ONLY = (
    "prompt", "prompts", "negative_prompt", "lora", "variant", "kind", "empty_caption", "dtype", "w", "guidance",
    "size", "original_size", "crop", "target_size", "image", "strength", "tile", "sampler", "attention",
)  # fmt: skip


def takes_captions() -> bool:
    """Whether the model is one of text to image; its description is read, no weights."""
    from lcm_jax import run_folder

    return run_folder.takes_captions(CHECKPOINT.value or MODEL.value, **opening.how())


def from_noise(weights: str) -> None:
    """Pictures of a model without captions."""
    several.alone("start it once")
    if given := [name for name in TEXT_ONLY if flags.FLAGS[name].present]:
        entry.stop(f"this model draws from noise alone: leave --{given[0]} out")
    try:
        sigmas = None if SIGMAS.value is None else [float(level) for level in SIGMAS.value]
    except ValueError:
        entry.stop(f"--sigmas takes numbers with commas between, not {','.join(SIGMAS.value)!r}")
    from lcm_jax import drawing, run_folder

    pipe = run_folder.pipeline(CHECKPOINT.value or MODEL.value, entry.step(STEP, CHECKPOINT), weights)
    chosen = {"steps": STEPS.value, "sigmas": sigmas, "label": LABEL.value, "seed": SEED.value, "batch": BATCH.value}
    grid, made = drawing.draw_from_noise(pipe, OUT.value, n=N.value, **chosen)
    print(f"{made['sampler']}, {made['steps']} steps ({made['evaluations']} network evaluations), seed {made['seed']}")
    print(grid)


def pair(flag: Any, least: int = 1) -> tuple[int, int] | None:
    """(height, width) of a flag."""
    if flag.value is None:
        return None
    sides = flag.value.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= least for side in sides):
        entry.stop(f"--{flag.name} is WIDTHxHEIGHT (or LEFTxTOP) or one number for both, not {flag.value!r}")
    return int(sides[-1]), int(sides[0])


if __name__ == "__main__":
    entry.run(main)
