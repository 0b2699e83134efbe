"""Draws one picture with what was exported in PyTorch, and the same one with the model it came of."""

import json
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 2.0  # of 255: the largest difference of a pixel that float32 arithmetic explains
PROMPTS = ("a red heart",)


def main(out: Path, given: str, format: str, dtype: str, **which: Any) -> None:
    """Prints how far apart both pictures are; ValueError if that is more than LIMIT.

    `out` is the export of `given`; the other arguments are those of lcm_jax.exporting.export.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as scratch:
        most, mean = apart(out, given, format, dtype, Path(scratch), **which)
    print(f"against diffusers in PyTorch: pixels differ by {most:.3g} of 255 at most, {mean:.3g} on average")
    if not most <= LIMIT:
        raise ValueError(f"{out} draws another picture in PyTorch: {most:.3g} of 255 apart, allowed are {LIMIT:g}")


def apart(
    out: Path, given: str, format: str, dtype: str, scratch: Path, seed: int = 0, **which: Any
) -> tuple[float, float]:
    """The largest and the mean difference of a pixel, in levels of 255, between both pictures.

    Both sides get one caption and the noise of one PyTorch generator; `scratch` is a folder for what diffusers needs
    beside a file. Raises ImportError where PyTorch or diffusers are absent.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise ImportError(f"--verify draws in PyTorch with diffusers ({error}): pip install 'lcm_jax[torch]'") from None
    import numpy as np

    from lcm_jax import verifying

    made = verifying.compared(out, given, format, dtype, scratch, **which)
    how = verifying.setting(made.leaving.spec)
    b, (h, w, c) = len(PROMPTS), how.latent
    # The pipeline takes the first draw as `latents` and the others from its generator, in this order.
    draw = lambda generator, n: [torch.randn((b, c, h, w), generator=generator) for _ in range(n)]
    noise = draw(torch.Generator().manual_seed(seed), how.draws)
    ours = verifying.draw(made.leaving, made.dtype, PROMPTS, np.stack([z.permute(0, 2, 3, 1).numpy() for z in noise]))

    load: dict[str, Any] = {"torch_dtype": torch.float32, "local_files_only": True}
    if not how.reads_clip:
        load |= {"text_encoder": None, "tokenizer": None}
    diffusers.utils.logging.disable_progress_bar()
    if format == "single-file":
        name = json.loads((made.folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
        pipe = getattr(diffusers, name).from_single_file(str(made.file), config=str(made.folder), **load)
    else:
        pipe = diffusers.DiffusionPipeline.from_pretrained(made.folder, **load)
    if format in ("lora", "kohya"):
        pipe.load_lora_weights(str(out), weight_name=made.file.name)
    pipe.set_progress_bar_config(disable=True)
    # Whatever times its scheduler file names, ours trail.
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    told: dict[str, Any] = {"prompt": list(PROMPTS)}
    if not how.reads_clip:
        told = {"prompt_embeds": torch.tensor(ours.condition["context"])}
        if how.w and pipe.unet.config.time_cond_proj_dim is None:
            told["negative_prompt_embeds"] = torch.tensor(ours.uncond["context"])
    generator = torch.Generator().manual_seed(seed)
    (latents,) = draw(generator, 1)
    with torch.no_grad():
        theirs = pipe(
            **told,
            num_inference_steps=how.steps,
            guidance_scale=how.w + 1,
            height=how.size,
            width=how.size,
            latents=latents,
            generator=generator,
            output_type="np",
        ).images
    differences = 255 * np.abs(ours.images - theirs)
    return float(differences.max()), float(differences.mean())
