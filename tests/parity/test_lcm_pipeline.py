"""Latents of whole pipelines of diffusers, with small random U-Nets, given conditions and our noise."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch  # noqa: E402
from both_sides import POOLED, QUICK, W_WIDTH, nchw, nhwc, ours, relative, theirs  # noqa: E402
from diffusers import (  # noqa: E402
    DDIMScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.schedulers import scheduling_lcm  # noqa: E402

from lcm_jax.diffusion.boundary import LCMBoundary, consistency  # noqa: E402
from lcm_jax.diffusion.field import guided_field, network_field  # noqa: E402
from lcm_jax.diffusion.guidance import guidance_embedding  # noqa: E402
from lcm_jax.diffusion.path import vp_path  # noqa: E402
from lcm_jax.models.spec import PathSpec  # noqa: E402
from lcm_jax.sampling import few_step, reference  # noqa: E402
from lcm_jax.sampling.schedule import filled
from lcm_jax.weights.diffusers_scheduler import ddim_scheduler_config, lcm_scheduler_config  # noqa: E402

B, W = 2, 6.5
PATH = {f: getattr(PathSpec(), f) for f in ("schedule", "beta_start", "beta_end", "T", "zero_terminal_snr")}
NONE = {"vae": None, "text_encoder": None, "tokenizer": None}
SAFE = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SIZES = np.array([64.0, 48, 8, 16, 64, 64])  # original height and width, crop top and left, target height and width


def told(seed: int, family: str = "sd") -> dict[str, np.ndarray]:
    """A condition of B samples."""
    rng = np.random.default_rng(seed)
    condition = {"context": rng.standard_normal((B, 5, 24)).astype(np.float32)}
    if family == "sdxl":
        condition |= {"pooled": rng.standard_normal((B, POOLED)).astype(np.float32)}
        condition |= {"time_ids": np.tile(SIZES, (B, 1)).astype(np.float32)}
    return condition


def jax_arrays(condition: dict[str, np.ndarray]) -> dict[str, jnp.ndarray]:
    return {name: jnp.asarray(value) for name, value in condition.items()}


def draws(n: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((n, B, 8, 8, 4)).astype(np.float32)


def prompts(cond: dict[str, np.ndarray], uncond: dict[str, np.ndarray] | None = None) -> dict[str, object]:
    """The keywords by which a pipeline of diffusers is given conditions in the place of prompts."""
    names = {"context": "prompt_embeds", "pooled": "pooled_prompt_embeds"}
    given = {theirs: torch.tensor(cond[name]) for name, theirs in names.items() if name in cond}
    if uncond is not None:
        given |= {f"negative_{theirs}": torch.tensor(uncond[name]) for name, theirs in names.items() if name in uncond}
    if "time_ids" in cond:
        original, crop, target = (tuple(int(x) for x in SIZES[i : i + 2]) for i in (0, 2, 4))
        given |= {"original_size": original, "crops_coords_top_left": crop, "target_size": target}
    return given


def run(pipeline, steps: int, noise: np.ndarray, scale: float, given: dict[str, object]) -> np.ndarray:
    """The latents a pipeline ends with."""
    pipeline.set_progress_bar_config(disable=True)
    start = {"num_inference_steps": steps, "latents": nchw(noise, "float32"), "guidance_scale": scale}
    return nhwc(pipeline(**start, **given, height=64, width=64, output_type="latent").images)


@pytest.mark.parametrize(
    "family, kind, counts", [("sd", "eps", (1, 2, 4, 8)), ("sd", "v", (1, 4)), ("sdxl", "eps", (2,))]
)
def test_latents_of_a_consistency_model(family, kind, counts, monkeypatch, agree):
    """The float32 embedding of w is theirs only to 5e-4, so they are given ours."""
    module, condition = theirs(family, "float32", 4, W_WIDTH), told(0, family)
    scheduler = LCMScheduler.from_config(lcm_scheduler_config(PATH, kind))
    if family == "sd":
        pipeline = LatentConsistencyModelPipeline(**NONE, **SAFE, unet=module, scheduler=scheduler)
    else:
        pipeline = StableDiffusionXLPipeline(
            **NONE, text_encoder_2=None, tokenizer_2=None, unet=module, scheduler=scheduler
        )
    features = guidance_embedding(jnp.full((B,), W), W_WIDTH)
    monkeypatch.setattr(pipeline, "get_guidance_scale_embedding", lambda *_, **__: torch.tensor(np.asarray(features)))

    apply, params = ours(module)
    network = partial(apply, params, **jax_arrays(condition), w_features=features)
    f = consistency(vp_path(), LCMBoundary(), network_field(vp_path(), kind, network))
    noise = draws(max(counts))
    draw = jnp.asarray(noise).__getitem__
    sample = jax.jit(lambda *schedule: few_step.sample(f, vp_path(), draw, *schedule), compiler_options=QUICK)
    for steps in counts:
        fresh = iter(torch.tensor(noise[1:steps]).permute(0, 1, 4, 2, 3))
        monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, fresh=fresh, **__: next(fresh))
        want = run(pipeline, steps, noise[0], W + 1, prompts(condition))
        agree(f"LCM latents, {steps} steps", relative(sample(*filled(few_step.lcm_times(steps))), want), 1e-4)
        assert np.linalg.norm(want) / want.size**0.5 > 0.1


@pytest.mark.parametrize("family, kind", [("sd", "eps"), ("sd", "v"), ("sdxl", "eps")])
def test_latents_of_a_guided_teacher(family, kind, agree):
    """DDIM at Stable Diffusion's own times with classifier-free guidance."""
    module, condition, uncond = theirs(family, "float32", 5), told(0, family), told(1, family)
    scheduler = DDIMScheduler.from_config(ddim_scheduler_config(PATH, kind, "leading"))
    if family == "sd":
        pipeline = StableDiffusionPipeline(**NONE, **SAFE, unet=module, scheduler=scheduler)
    else:
        pipeline = StableDiffusionXLPipeline(
            **NONE, text_encoder_2=None, tokenizer_2=None, unet=module, scheduler=scheduler
        )
    noise = draws(1)[0]
    want = run(pipeline, 5, noise, W + 1, prompts(condition, uncond))

    apply, params = ours(module)
    conditions = jax_arrays(condition), jax_arrays(uncond)
    field = guided_field(vp_path(), kind, partial(apply, params), *conditions, jnp.full((B,), W))
    times = reference.sampler_times("ddim_leading", 5)
    sample = lambda noise: reference.sample("ddim_leading", vp_path(), field, noise, times)
    got = jax.jit(sample, compiler_options=QUICK)(jnp.asarray(noise))
    agree("DDIM latents of a guided teacher, 5 steps", relative(got, want), 1e-4)
    assert np.linalg.norm(want) / want.size**0.5 > 0.1
