"""Draws one picture with an exported diffusers folder in PyTorch, and the same one with the model it came of."""

from pathlib import Path
from typing import Any

LIMIT = 2.0  # of 255: the largest difference of a pixel that float32 arithmetic explains
PROMPTS = ("a red heart",)


def main(out: Path, leaving: Any, dtype: str) -> None:
    """Prints how far apart both pictures are; ValueError if that is more than LIMIT."""
    most, mean = apart(out, leaving, dtype)
    print(f"against diffusers in PyTorch: pixels differ by {most:.3g} of 255 at most, {mean:.3g} on average")
    if not most <= LIMIT:
        raise ValueError(f"{out} draws another picture in PyTorch: {most:.3g} of 255 apart, allowed are {LIMIT:g}")


def apart(out: Path, leaving: Any, dtype: str, seed: int = 0) -> tuple[float, float]:
    """The largest and the mean difference of a pixel, in levels of 255, between both pictures.

    `leaving` is what was exported to `out` in `dtype` (lcm_jax.exporting). Both sides get one caption and the noise
    of one PyTorch generator. Raises ImportError where PyTorch or diffusers are absent.
    """
    try:
        import diffusers
        import torch
    except ImportError as error:
        raise ImportError(f"--verify draws in PyTorch with diffusers ({error}): pip install 'lcm_jax[torch]'") from None
    import numpy as np

    from lcm_jax import verifying

    how = verifying.setting(leaving.spec)
    b, (h, w, c) = len(PROMPTS), how.latent
    # The pipeline takes the first draw as `latents` and the others from its generator, in this order.
    draw = lambda generator, n: [torch.randn((b, c, h, w), generator=generator) for _ in range(n)]
    noise = draw(torch.Generator().manual_seed(seed), how.draws)
    ours = verifying.draw(leaving, dtype, PROMPTS, np.stack([z.permute(0, 2, 3, 1).numpy() for z in noise]))

    load: dict[str, Any] = {"torch_dtype": torch.float32, "local_files_only": True}
    if not how.reads_clip:
        load |= {"text_encoder": None, "tokenizer": None}
    diffusers.utils.logging.disable_progress_bar()
    pipe = diffusers.DiffusionPipeline.from_pretrained(out, **load)
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
