"""Steps and trajectories against diffusers' schedulers, and the sinusoids both sides feed their networks.

The schedulers read our float64 table in the place of their float32 one, which is off by 1.3e-5 in
sqrt(1 - alphas_cumprod[0]): what is compared is how they step. Tables are compared with the scheduler files.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("diffusers")

import torch  # noqa: E402
from both_sides import relative  # noqa: E402
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, LatentConsistencyModelPipeline, LCMScheduler  # noqa: E402
from diffusers.models.embeddings import get_timestep_embedding  # noqa: E402
from diffusers.schedulers import scheduling_lcm  # noqa: E402

from lcm_jax.diffusion import solver  # noqa: E402
from lcm_jax.diffusion.boundary import LCMBoundary, consistency  # noqa: E402
from lcm_jax.diffusion.guidance import guidance_embedding  # noqa: E402
from lcm_jax.diffusion.path import predict, vp_path  # noqa: E402
from lcm_jax.models.layers import time_features  # noqa: E402
from lcm_jax.sampling import few_step, reference  # noqa: E402

PREDICTS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
ZERO_SNR = [("eps", False), ("v", False), ("x0", False), ("v", True)]  # kind, zero terminal SNR
LATENT = (2, 3, 3, 4)


@pytest.fixture(autouse=True)
def double_precision():
    """Both sides in float64, so that nothing but formulas can differ."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)


def network(z, t, where):
    """Any smooth function of a latent and its time, in jax.numpy or torch."""
    return 0.5 * where.tanh(z) + 0.3 * where.cos(3 * z) + 0.001 * t


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def ours(kind, zero_snr):
    """(path, field) of the function above."""
    path = vp_path(zero_terminal_snr=zero_snr)
    return path, lambda z, t: predict(path, kind, network(z, t.reshape(-1, 1, 1, 1), jnp), z, t)


def scheduler(cls, path, kind, **settings):
    """A scheduler of diffusers on our table."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    made = cls(**betas, prediction_type=PREDICTS[kind], **settings)
    made.alphas_cumprod = torch.tensor(path.alphas**2)
    return made


def walk(made, z):
    """The end of a scheduler's trajectory."""
    z = torch.tensor(z)
    for t in made.timesteps:
        z = made.step(network(z, t, torch), t, z).prev_sample
    return z.numpy()


@pytest.mark.parametrize("kind, zero_snr", ZERO_SNR)
def test_ddim_steps(kind, zero_snr, agree):
    """From every time with a whole step before it, and from the last to the data."""
    path, field = ours(kind, zero_snr)
    made = scheduler(DDIMScheduler, path, kind, clip_sample=False)
    made.set_timesteps(50)
    for t in (999, 979, 519, 39, 20):
        if kind == "eps" and zero_snr and t == 999:
            continue
        z, at = draw(*LATENT, seed=t), lambda time: jnp.full(2, time)
        want = made.step(network(torch.tensor(z), t, torch), t, torch.tensor(z)).prev_sample
        got = solver.ddim(path, field, jnp.asarray(z), at(t), at(t - 20))
        np.testing.assert_allclose(got, want.numpy(), rtol=1e-6, atol=1e-6)
        agree("DDIM, a step", relative(got, want), 1e-6)


@pytest.mark.parametrize("n", [4, 50])
@pytest.mark.parametrize("sampler, spacing", [("ddim", "trailing"), ("ddim_leading", "leading")])
@pytest.mark.parametrize("kind, zero_snr", ZERO_SNR)
def test_ddim_trajectories(kind, zero_snr, sampler, spacing, n, agree):
    """n divides T: elsewhere diffusers steps by T // n whatever its next time is."""
    path, field = ours(kind, zero_snr)
    noise, times = draw(*LATENT), reference.sampler_times(sampler, n)
    spaced = {"timestep_spacing": spacing, "steps_offset": int(spacing == "leading")}
    made = scheduler(DDIMScheduler, path, kind, clip_sample=False, **spaced)
    made.set_timesteps(n)
    want = walk(made, noise)
    np.testing.assert_array_equal(made.timesteps.numpy(), times[:-1])
    got = reference.sample(sampler, path, field, jnp.asarray(noise), times)
    agree("DDIM, 4 and 50 steps", relative(got, want), 1e-6)


@pytest.mark.parametrize("n", [2, 20])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_dpm_solver_pp_trajectories(kind, spacing, n, agree):
    """2M with a first and a last step of first order. diffusers rounds the sample to float32 in every step."""
    path, field = ours(kind, False)
    noise, times = draw(*LATENT), reference.reference_times(n, spacing=spacing)
    made = scheduler(DPMSolverMultistepScheduler, path, kind, timestep_spacing=spacing)
    made.set_timesteps(n)
    np.testing.assert_array_equal(made.timesteps.numpy(), times[:-1])
    levels = np.append((path.sigmas / path.alphas)[times[:-1]], 0)
    np.testing.assert_allclose(made.sigmas.numpy(), levels, rtol=1e-6)
    made.sigmas = torch.tensor(levels)  # theirs were rounded to float32
    got = reference.sample("dpmpp_2m", path, field, jnp.asarray(noise), times)
    agree("DPM-Solver++(2M), 2 and 20 steps", relative(got, walk(made, noise)), 1e-6)


@pytest.mark.parametrize("scaling", [10.0, 3.0])
@pytest.mark.parametrize("kind, zero_snr", ZERO_SNR)
def test_consistency_functions(kind, zero_snr, scaling):
    """LCMScheduler's "denoised" at each of the 50 times of training."""
    path, field = ours(kind, zero_snr)
    made = scheduler(LCMScheduler, path, kind, timestep_scaling=scaling)
    made.set_timesteps(50)
    times = few_step.lcm_times(50)
    np.testing.assert_array_equal(made.timesteps.numpy(), times)
    z = draw(50, *LATENT[1:])
    got = consistency(path, LCMBoundary(scaling), field)(jnp.asarray(z), jnp.asarray(times))
    for t, one, mine in zip(made.timesteps, torch.tensor(z), got, strict=True):
        want = made.step(network(one, t, torch), t, one).denoised
        np.testing.assert_allclose(mine, want.numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n, strength", [(1, 1.0), (2, 1.0), (8, 1.0), (7, 1.0), (4, 0.5)])
@pytest.mark.parametrize("kind, zero_snr", ZERO_SNR)
def test_lcm_trajectories(kind, zero_snr, n, strength, monkeypatch, agree):
    """LCMScheduler's steps with its draws replaced by ours; below strength 1 from latents that are there."""
    path, field = ours(kind, zero_snr)
    noise, start, times = draw(n, *LATENT), draw(*LATENT, seed=1), few_step.lcm_times(n, strength=strength)
    made = scheduler(LCMScheduler, path, kind)
    made.set_timesteps(n, strength=strength)
    np.testing.assert_array_equal(made.timesteps.numpy(), times)
    fresh = iter(torch.tensor(noise[1:]))
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(fresh))
    z, changed = noise[0], {}
    if strength < 1:
        z = made.add_noise(torch.tensor(start), torch.tensor(z), made.timesteps[:1].repeat(len(z))).numpy()
        changed = {"start": jnp.asarray(start)}
    want = walk(made, z)
    assert next(fresh, None) is None
    f, drawn = consistency(path, LCMBoundary(), field), jnp.asarray(noise).__getitem__
    got = few_step.sample(f, path, drawn, times, **changed)
    agree("LCMScheduler, 1 to 8 steps", relative(got, want), 1e-6)


@pytest.mark.parametrize("width", [256, 512])
def test_embedding_of_guidance(width, agree):
    """Theirs in float64: in float32 it is off by up to 5e-4 itself."""
    w = np.float32([0, 0.5, 1, 2, 6.5, 7.5, 13.999, 14])
    theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    want = theirs(None, torch.tensor(w).double(), width, torch.float64).numpy()
    agree("embedding of w, largest difference", np.abs(guidance_embedding(jnp.asarray(w), width) - want).max(), 1e-6)


@pytest.mark.parametrize("width", [16, 256, 320])
def test_embedding_of_times(width, agree):
    """To 1e-6 beside what a float32 frequency leaves open, whose exponent and exponential two libraries round alike
    but for a few last bits: those times the angle.
    """
    t = np.arange(1000)
    want = get_timestep_embedding(torch.tensor(t), width, flip_sin_to_cos=True, downscale_freq_shift=0).numpy()
    exponent = np.log(10_000) * np.arange(width // 2) / (width // 2)
    open_ = np.tile(t[:, None] * np.exp(-exponent) * (2 + exponent) * 2.0**-23, 2)
    for embed in (time_features, jax.jit(time_features, static_argnums=1)):
        got = np.asarray(embed(jnp.asarray(t), width))
        assert np.all(np.abs(got - want) <= 1e-6 + open_)
        agree("embedding of times", relative(got, want), 1e-5)
