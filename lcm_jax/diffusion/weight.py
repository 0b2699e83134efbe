"""Weights of losses, [b]: lambda(t, s) of consistency pairs, and signal-to-noise laws of diffusion losses."""

from collections.abc import Callable
from functools import partial

import jax.numpy as jnp

from lcm_jax.diffusion.path import KINDS, Path, divide
from lcm_jax.typing import PerSample, Times

SIGMA_DATA = 0.5


def uniform(t: Times, s: Times) -> PerSample:
    """1 (CM, LCM)."""
    return jnp.ones_like(t - s, jnp.result_type(float))


def inverse_step(t: Times, s: Times) -> PerSample:
    """1 / (t - s) (iCT eq. 8)."""
    return 1 / (t - s)


def karras(t: Times, s: Times, sigma_data: float = SIGMA_DATA) -> PerSample:
    """1 / t^2 + 1 / sigma_data^2 on a VE path (EDM Tab. 1; the same as ECT's (t^2 + sd^2) / (t sd)^2)."""
    return 1 / t**2 + 1 / sigma_data**2


def root_snr(path: Path, t: Times, s: Times, least: float = 0.1) -> PerSample:
    """max(alpha_t / sigma_t, `least`): on an error of x0, that of the eps behind it.

    A loss of eps weighs small times so. A distance that grows like the error itself (huber, l1) and weighs all times
    alike gives their fine detail away for the large errors of large times (measured: configs/quickstart.py). `least`
    keeps the last time of zero terminal SNR, where alpha is 0.
    """
    return jnp.maximum(divide(path.alpha(t), path.sigma(t)), least)


WEIGHTS: dict[str, Callable[[Times, Times], PerSample]] = {
    "uniform": uniform,
    "inverse_step": inverse_step,
    "karras": karras,
}


def get(name: str, sigma_data: float) -> Callable[[Times, Times], PerSample]:
    """The pair weight of that name for data of std `sigma_data`; ValueError lists the names."""
    if name not in WEIGHTS:
        raise ValueError(f"unknown weight {name!r}; choose one of {', '.join(WEIGHTS)}")
    return partial(karras, sigma_data=sigma_data) if name == "karras" else WEIGHTS[name]


def min_snr(path: Path, kind: str, t: Times, gamma: float = 5.0) -> PerSample:
    """min(SNR, gamma) on the x0 error, as a factor of the eps, v or x0 error (Min-SNR, Hang et al. 2023)."""
    return _from_x0(path, kind, t, jnp.minimum(_snr(path, t), gamma))


def _snr(path: Path, t: Times) -> PerSample:
    return divide(path.alpha(t) ** 2, path.sigma(t) ** 2)


def _from_x0(path: Path, kind: str, t: Times, weight: PerSample) -> PerSample:
    """|x0 error|^2 is |eps error|^2 / SNR and, on a variance-preserving path, |v error|^2 / (SNR + 1)."""
    snr = _snr(path, t)
    factors = dict(zip(KINDS, (snr, snr + 1, jnp.ones_like(snr)), strict=True))
    if kind not in factors:
        raise ValueError(f"unknown prediction kind {kind!r}; choose one of {', '.join(KINDS)}")
    return weight / factors[kind]
