"""Writes a run's model, or any other, as a folder that describes itself: for lcm_jax, diffusers, ComfyUI.

    python -m launch.export --checkpoint runs/lcd --out exported/lcd [--dtype float16]
    python -m launch.export --checkpoint runs/lcd --out for_diffusers/lcd --format diffusers --verify
    python -m launch.export --model exported/lcd --out for_comfyui/lcd --format single-file --w 7 --dtype float16
    python -m launch.export --checkpoint runs/lcm_lora --out loras/lcm --format lora

Formats: flax (safetensors and msgpack), diffusers (a pipeline's folder), single-file (Stable Diffusion's original
layout), lora and kohya (a run's adapters in the names of diffusers and of kohya). --model takes an exported folder,
a shipped model's name, a diffusers folder or hub name, or a single file.

--verify draws one picture in PyTorch and here and ends with an error where they differ: a diffusers folder as it is, a
single file by from_single_file with its own configs, adapters by load_lora_weights into the model they were trained on.
"""

from absl import flags

from launch import entry, opening

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run folder of launch.train.")
MODEL = flags.DEFINE_string("model", None, "Folder, single file, shipped or hub name of a model, in place of a run.")
OUT = flags.DEFINE_string("out", None, "Folder to make.")
FORMAT = flags.DEFINE_string("format", "flax", "flax, diffusers, single-file, lora or kohya.")
DTYPE = flags.DEFINE_string("dtype", "float32", "float32, float16 or bfloat16.")
WEIGHTS = flags.DEFINE_string("weights", "ema", "ema (what the run's samples were drawn with), params or target.")
EMA = flags.DEFINE_string("ema", None, "Average of a run that keeps several, as 0.9999 or power0.1; else the first.")
STEP = flags.DEFINE_string("step", None, "Training step, or best; the newest by default.")
W = flags.DEFINE_float("w", None, "Fix the guidance w of a student, for programs that cannot give it one.")
MSGPACK = flags.DEFINE_bool("msgpack", True, "Write Flax msgpack beside safetensors.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier export in --out.")
VERIFY = flags.DEFINE_bool(
    "verify", False, "Draw with diffusers in PyTorch (extra `torch`) and here, and compare; every format but flax."
)
flags.mark_flags_as_required(["out"])


def main() -> None:
    entry.folder(OUT)
    if (CHECKPOINT.value is None) == (MODEL.value is None):
        entry.stop("give either --checkpoint RUN or --model MODEL")
    if MODEL.value is not None and (STEP.present or WEIGHTS.present or EMA.present):
        entry.stop("--step, --weights and --ema choose among the weights of --checkpoint; a --model has one set")
    if CHECKPOINT.value is not None and opening.given():
        entry.stop("--variant, --kind and --empty_caption are for --model: a run knows what it is of")
    if VERIFY.value and FORMAT.value == "flax":
        entry.stop("--verify draws with diffusers in PyTorch, which reads no flax: give another --format")
    from lcm_jax import exporting, run_folder

    if CHECKPOINT.value is not None and not run_folder.is_run(CHECKPOINT.value):
        entry.stop(f"{CHECKPOINT.value} holds no run: give a --run folder of launch.train, or a model as --model")
    given = CHECKPOINT.value or MODEL.value
    weights = entry.weights(WEIGHTS, EMA, CHECKPOINT)
    which = {"weights": weights, "step": entry.step(STEP, CHECKPOINT), "w": W.value, **opening.how()}
    how = {"overwrite": OVERWRITE.value, "msgpack": MSGPACK.value}
    out = exporting.export(given, OUT.value, FORMAT.value, DTYPE.value, **which, **how)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    if VERIFY.value:
        from launch import verify

        verify.main(out, given, FORMAT.value, DTYPE.value, **which)


if __name__ == "__main__":
    entry.run(main)
