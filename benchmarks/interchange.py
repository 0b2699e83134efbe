"""The same pictures here and in PyTorch: a student exported to diffusers draws there from the noise it draws from here.

    python -m benchmarks.interchange --student runs/noto_lcd --teacher exported/noto_teacher --out runs/interchange

Writes a grid (rows: prompts; columns: the teacher's DDIM, the student here, the student in diffusers) and how far the
two right columns are apart. Needs the extra `torch`.
"""

import argparse
from pathlib import Path

import numpy as np

from benchmarks import results
from lcm_jax import exporting, run_folder
from lcm_jax.evaluate import grid
from lcm_jax.image_keys import image_keys
from lcm_jax.pipeline import to_pixels

PROMPTS = ("grinning face", "red heart", "pizza", "dog face", "rocket", "flag of japan", "soccer ball", "a blue apple")
STEPS, TEACHER_STEPS = 4, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--w", type=float, default=1.0)
    args = parser.parse_args()

    student, teacher = run_folder.pipeline(args.student), run_folder.pipeline(args.teacher)
    folder = exporting.export(args.student, Path(args.out) / "student", "diffusers", overwrite=True)
    setting = student.setting("lcm", STEPS)
    noise = student.noise(setting, image_keys(PROMPTS, 1, seed=0))
    told = student.encode(PROMPTS)
    w = np.full(len(PROMPTS), args.w, np.float32)
    z = student.latents(setting, student.params["unet"], told, told, w, noise)
    here = np.asarray(to_pixels(student.decode(student.params, z)))
    there = in_diffusers(folder, np.stack([noise(i) for i in range(STEPS)]), told["context"], args.w)
    reference = teacher(PROMPTS, steps=TEACHER_STEPS, w=args.w)
    apart = np.abs(here.astype(int) - there)
    images = np.stack([reference, here, there], axis=1).reshape(-1, *here.shape[1:])
    labels = [f"teacher\n{TEACHER_STEPS} steps", f"student\n{STEPS} steps", "the same\nin diffusers"]
    sheet = grid.grid(images, 3, list(PROMPTS), labels)
    values = {
        "steps": STEPS,
        "w": args.w,
        "prompts": list(PROMPTS),
        "pixels_apart": {"largest": int(apart.max()), "mean": float(apart.mean()), "of": 255},
    }
    print(grid.save(results.FOLDER / "interchange.png", sheet, values))
    results.save("interchange", values)


def in_diffusers(folder: Path, noise: np.ndarray, context: np.ndarray, w: float) -> np.ndarray:
    """uint8 pictures of the exported folder, made by PyTorch with the same noise in the place of its own."""
    import diffusers
    import torch

    as_theirs = lambda z: torch.tensor(np.moveaxis(z, -1, 1).copy())
    rest = iter([as_theirs(z) for z in noise[1:]])
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    module = __import__("diffusers.schedulers.scheduling_lcm", fromlist=["randn_tensor"])
    module.randn_tensor = lambda *given, **more: next(rest)
    with torch.no_grad():
        images = pipe(
            prompt_embeds=torch.tensor(context),
            num_inference_steps=len(noise),
            guidance_scale=w + 1,
            latents=as_theirs(noise[0]),
            output_type="np",
        ).images
    return np.clip(np.round(images * 255), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
