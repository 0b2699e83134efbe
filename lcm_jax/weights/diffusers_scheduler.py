"""The noise path a model was trained on against diffusers' scheduler_config.json, both ways.

Of a scheduler file only what concerns the trained network is taken: beta schedule, prediction type, and for a
consistency model its boundary; how its sampler steps is left to our own samplers. The spacing of its times is kept to
be written again, and not sampled at: "leading" times, which most files name, never see pure noise, and few steps of
DDIM do much worse at them than at "trailing" ones (README, quick start). "ddim_leading" samples there.
"""

from collections.abc import Mapping
from typing import Any

from lcm_jax.weights.diffusers_keys import Config, count, read, refuse

KINDS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
SPACINGS = ("leading", "trailing", "linspace")

_PIXEL = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
_CONSISTENCY = {**_LATENT, "beta_schedule": "scaled_linear", "original_inference_steps": 50, "timestep_scaling": 10.0}
CLASSES: dict[str, Config] = {  # what each takes for keys that its file leaves out
    "LCMScheduler": _CONSISTENCY,
    "DDIMScheduler": _PIXEL,
    "DDPMScheduler": _PIXEL,
    "PNDMScheduler": _PIXEL,
    "DEISMultistepScheduler": _PIXEL,
    "DPMSolverMultistepScheduler": _PIXEL,
    "DPMSolverSinglestepScheduler": _PIXEL,
    "EulerAncestralDiscreteScheduler": _PIXEL,
    "EulerDiscreteScheduler": _PIXEL,
    "LMSDiscreteScheduler": _PIXEL,
    "UniPCMultistepScheduler": _PIXEL,
    "DPMSolverSDEScheduler": _LATENT,
    "HeunDiscreteScheduler": _LATENT,
    "KDPM2AncestralDiscreteScheduler": _LATENT,
    "KDPM2DiscreteScheduler": _LATENT,
}
_SIZED = {
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "timestep_spacing": None,  # each sampler has its own
    "original_inference_steps": None,
    "timestep_scaling": None,
}
_FIXED = {
    "trained_betas": (None,),
    "timestep_type": ("discrete",),
    "use_dynamic_shifting": (False,),
    "use_flow_sigmas": (False,),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}
# How a sampler steps; a file also keeps such keys of the schedulers it was made from.
_UNREAD = ("algorithm_type", "clip_sample", "clip_sample_range", "disable_corrector", "dynamic_thresholding_ratio")
_UNREAD += ("euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type", "lambda_min_clipped")
_UNREAD += ("lower_order_final", "noise_sampler_seed", "predict_x0", "sample_max_value", "set_alpha_to_one")
_UNREAD += ("shift_terminal", "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_p", "solver_type")
_UNREAD += ("steps_offset", "thresholding", "time_shift_type", "use_beta_sigmas", "use_exponential_sigmas")
_UNREAD += ("use_karras_sigmas", "use_lu_lambdas")


def scheduler_path(config: Config, source: str = "scheduler/scheduler_config.json") -> dict[str, Any]:
    """What the content of a scheduler_config.json says of the network that was trained with it.

    "path": fields of models.spec.PathSpec; "kind": "eps", "v" or "x0"; "spacing": "leading", "trailing",
    "linspace" or, where the file does not say, None (diffusers then takes the default of whichever sampler runs:
    DDIM's and PNDM's is leading, DPM-Solver's and Euler's linspace); "original_steps" and "timestep_scaling" of
    an LCMScheduler, None for others.
    Raises ValueError naming the key, its value and what is supported, and for epsilon at zero terminal SNR.
    """
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in CLASSES:
        refuse(source, "_class_name", name, ", ".join(CLASSES))
    c = read(config, name, {**_SIZED, **CLASSES[name]}, _FIXED, _UNREAD, source)
    for key, known in (("prediction_type", KINDS), ("beta_schedule", SCHEDULES), ("timestep_spacing", SPACINGS)):
        if c[key] not in known and not (key == "timestep_spacing" and c[key] is None):
            refuse(source, key, c[key], ", ".join(known))
    for key in ("beta_start", "beta_end"):
        if type(c[key]) is not float or not 0 < c[key] < 1:
            refuse(source, key, c[key], "a number between 0 and 1")
    zero, kind = bool(c["rescale_betas_zero_snr"]), KINDS[c["prediction_type"]]
    if zero and kind == "eps":
        raise ValueError(
            f"{source} joins prediction_type = 'epsilon' to rescale_betas_zero_snr = true, where epsilon says "
            "nothing about the image: one of the two is wrong (such models predict v)"
        )
    consistency = CLASSES[name] is _CONSISTENCY
    return {
        "path": {
            "schedule": SCHEDULES[c["beta_schedule"]],
            "beta_start": c["beta_start"],
            "beta_end": c["beta_end"],
            "T": count(c, "num_train_timesteps", source),
            "zero_terminal_snr": zero,
        },
        "kind": kind,
        "spacing": c["timestep_spacing"],
        "original_steps": count(c, "original_inference_steps", source) if consistency else None,
        "timestep_scaling": float(c["timestep_scaling"]) if consistency else None,
    }


def lcm_scheduler_config(
    path: Mapping[str, Any],
    kind: str,
    original_steps: int = 50,
    timestep_scaling: float = 10.0,
    spacing: str = "trailing",
) -> dict[str, Any]:
    """The scheduler_config.json with which diffusers' LCMScheduler samples a consistency model as we do.

    `path` has the fields of models.spec.PathSpec. ValueError for an unknown spacing, schedule or kind.
    """
    return {
        "_class_name": "LCMScheduler",
        **_trained_with(path, kind),
        "original_inference_steps": original_steps,
        "timestep_scaling": timestep_scaling,
        "set_alpha_to_one": True,
        "steps_offset": 1,  # without effect; pipelines of Stable Diffusion warn of any other
        "timestep_spacing": _known(spacing),  # without effect: the times come from original_inference_steps
    }


def ddim_scheduler_config(path: Mapping[str, Any], kind: str, spacing: str = "trailing") -> dict[str, Any]:
    """The scheduler_config.json with which diffusers' DDIMScheduler samples a diffusion model as we do.

    That is sampling.reference's "ddim" ("ddim_leading" at spacing "leading"; "linspace" is none of ours), ending in
    the clean prediction. ValueError for an unknown spacing, schedule or kind.
    """
    return {
        "_class_name": "DDIMScheduler",
        **_trained_with(path, kind),
        "set_alpha_to_one": True,
        "steps_offset": 1,  # of leading times only
        "timestep_spacing": _known(spacing),
    }


def _known(spacing: str) -> str:
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}; choose one of {', '.join(SPACINGS)}")
    return spacing


def _trained_with(path: Mapping[str, Any], kind: str) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in KINDS.items()}
    schedules = {ours: theirs for theirs, ours in SCHEDULES.items()}
    if kind not in names:
        raise ValueError(f"unknown prediction kind {kind!r}; choose one of {', '.join(names)}")
    if path["schedule"] not in schedules:
        raise ValueError(f"unknown beta schedule {path['schedule']!r}; choose one of {', '.join(schedules)}")
    return {
        "num_train_timesteps": path["T"],
        "beta_start": path["beta_start"],
        "beta_end": path["beta_end"],
        "beta_schedule": schedules[path["schedule"]],
        "trained_betas": None,
        "prediction_type": names[kind],
        "rescale_betas_zero_snr": path["zero_terminal_snr"],
        "clip_sample": False,
        "thresholding": False,
    }
