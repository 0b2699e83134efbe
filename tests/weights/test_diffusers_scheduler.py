"""Scheduler files say what a network was trained on; those written here make diffusers sample as we do."""

import json
from dataclasses import asdict

import jax.numpy as jnp
import numpy as np
import pytest
from published_configs import PUBLISHED

from lcm_jax.diffusion.path import predict, vp_path
from lcm_jax.models.spec import PathSpec
from lcm_jax.sampling import reference
from lcm_jax.sampling.few_step import lcm_times
from lcm_jax.weights.diffusers_scheduler import (
    CLASSES,
    ddim_scheduler_config,
    lcm_scheduler_config,
    scheduler_path,
)

PNDM = PUBLISHED["stable-diffusion-v1-5"]["scheduler"]
SD_PATH = asdict(PathSpec())
ZERO = asdict(PathSpec("linear", 0.0001, 0.02, 500, True))
COSINE = asdict(PathSpec("cosine"))


@pytest.mark.parametrize(
    "name, kind, spacing, original_steps",
    [
        ("stable-diffusion-v1-5", "eps", None, None),
        ("stable-diffusion-2-1-base", "eps", None, None),
        ("stable-diffusion-2-1", "v", None, None),
        ("stable-diffusion-xl-base-1.0", "eps", "leading", None),
        ("LCM_Dreamshaper_v7", "eps", "leading", 50),
    ],
)
def test_published_schedulers(name, kind, spacing, original_steps):
    found = scheduler_path(PUBLISHED[name]["scheduler"])
    assert PathSpec(**found["path"]) == PathSpec()
    assert (found["kind"], found["spacing"], found["original_steps"]) == (kind, spacing, original_steps)
    assert found["timestep_scaling"] == (10.0 if original_steps else None)


@pytest.mark.parametrize("path, kind", [(SD_PATH, "eps"), (ZERO, "v"), (COSINE, "x0")])
def test_paths_survive_the_way_there_and_back(path, kind):
    ddim = json.loads(json.dumps(ddim_scheduler_config(path, kind, "leading")))
    lcm = json.loads(json.dumps(lcm_scheduler_config(path, kind, 25, 8.0)))
    assert scheduler_path(ddim) == {
        "path": path,
        "kind": kind,
        "spacing": "leading",
        "original_steps": None,
        "timestep_scaling": None,
    }
    found = scheduler_path(lcm)
    assert (found["path"], found["kind"]) == (path, kind)
    assert (found["original_steps"], found["timestep_scaling"]) == (25, 8.0)


@pytest.mark.parametrize(
    "key, value, supported",
    [
        ("_class_name", "FlowMatchEulerDiscreteScheduler", "LCMScheduler, DDIMScheduler"),
        ("_class_name", "EDMEulerScheduler", "LCMScheduler, DDIMScheduler"),
        ("_class_name", None, "LCMScheduler, DDIMScheduler"),
        ("prediction_type", "flow_prediction", "epsilon, v_prediction, sample"),
        ("beta_schedule", "sigmoid", "linear, scaled_linear, squaredcos_cap_v2"),
        ("beta_start", "0.1", "a number between 0 and 1"),
        ("timestep_spacing", "even", "leading, trailing, linspace"),
        ("trained_betas", [0.1, 0.2], "None"),
        ("timestep_type", "continuous", "'discrete'"),
        ("variance_type", "learned_range", "'fixed_small'"),
        ("use_flow_sigmas", True, "False"),
        ("num_train_timesteps", None, "one positive whole number"),
    ],
)
def test_what_is_not_supported_is_named(key, value, supported):
    with pytest.raises(ValueError) as caught:
        scheduler_path({**PNDM, key: value})
    message = str(caught.value)
    assert message.startswith(f"scheduler/scheduler_config.json has {key} = {value!r}, which is not supported")
    assert supported in message


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="has snr_shift_scale = 3.0, which is not supported"):
        scheduler_path({**PNDM, "snr_shift_scale": 3.0})


def test_epsilon_says_nothing_at_zero_terminal_snr():
    with pytest.raises(ValueError, match="'epsilon' to rescale_betas_zero_snr = true"):
        scheduler_path({**PNDM, "rescale_betas_zero_snr": True})
    assert scheduler_path({**PNDM, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"})["kind"] == "v"


def test_nothing_unknown_is_written():
    with pytest.raises(ValueError, match="unknown prediction kind 'flow'; choose one of eps, v, x0"):
        lcm_scheduler_config(SD_PATH, "flow")
    with pytest.raises(ValueError, match="unknown beta schedule 'karras'"):
        ddim_scheduler_config({**SD_PATH, "schedule": "karras"}, "eps")
    for write in (ddim_scheduler_config, lcm_scheduler_config):
        with pytest.raises(ValueError, match="unknown spacing 'even'; choose one of leading, trailing, linspace"):
            write(SD_PATH, "eps", spacing="even")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # numpy's, of how some of them use torch
@pytest.mark.parametrize("name", CLASSES)
def test_files_without_a_beta_schedule_mean_what_diffusers_takes(name):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    theirs = getattr(diffusers, name)().alphas_cumprod
    ours = vp_path(**scheduler_path({"_class_name": name})["path"]).alphas ** 2
    assert theirs.dtype == torch.float32
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4)  # their table is float32


@pytest.mark.parametrize("path, kind", [(SD_PATH, "eps"), (ZERO, "v"), (COSINE, "x0")])
def test_diffusers_takes_the_same_path_from_what_is_written(path, kind):
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    for cls, config in (
        (diffusers.DDIMScheduler, ddim_scheduler_config(path, kind)),
        (diffusers.LCMScheduler, lcm_scheduler_config(path, kind)),
    ):
        scheduler = cls.from_config(config)
        assert config.items() - {("_class_name", cls.__name__)} <= dict(scheduler.config).items()
        np.testing.assert_allclose(vp_path(**path).alphas ** 2, scheduler.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)


def test_diffusers_takes_the_times_of_lcm():
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler.from_config(lcm_scheduler_config(SD_PATH, "eps", 25))
    scheduler.set_timesteps(4)
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), lcm_times(4, original_steps=25))


@pytest.mark.parametrize("sampler, spacing", [("ddim", "trailing"), ("ddim_leading", "leading")])
@pytest.mark.parametrize("spec, kind", [(SD_PATH, "eps"), (ZERO, "v")])
def test_diffusers_ddim_goes_the_way_of_ours(sampler, spacing, spec, kind):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    network = lambda z, t, where: 0.5 * where.tanh(z) + 0.001 * t  # any function of z and t
    z = np.random.default_rng(0).standard_normal((2, 3, 3, 1)).astype(np.float32)

    path = vp_path(**spec)
    field = lambda z, t: predict(path, kind, network(z, t.reshape(-1, 1, 1, 1), jnp), z, t)
    times = reference.sampler_times(sampler, 5, spec["T"])
    ours = reference.sample(sampler, path, field, jnp.asarray(z), times)

    scheduler = diffusers.DDIMScheduler.from_config(ddim_scheduler_config(spec, kind, spacing))
    scheduler.set_timesteps(5)
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), times[:-1])
    theirs = torch.tensor(z)
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t, torch), t, theirs).prev_sample
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-4, atol=2e-4)
