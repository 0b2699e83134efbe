"""One step of the probability-flow ODE along a field, t to an earlier s: psi(path, field, z_t, t, s) -> z_s.

As z / alpha against r = sigma / alpha the ODE reads d(z / alpha) / dr = eps on every path (DDIM eq. 14; EDM
eq. 1). Each rule is the first-order step plus a correction by a second evaluation, written so that nothing is
divided by alpha or sigma where they vanish. With t = s every rule returns z.
"""

from collections.abc import Callable

import jax.numpy as jnp

from lcm_jax.diffusion.path import Path, Prediction, divide, expand
from lcm_jax.typing import Field, Latent, PerSample, Times

Solver = Callable[[Path, Field, Latent, Times, Times], Latent]


def ddim(path: Path, field: Field, z: Latent, t: Times, s: Times) -> Latent:
    """DDIM, first order (LCM eq. 18): z_s = alpha_s x0 + sigma_s eps."""
    return ride(path, field(z, t), s)


def heun(path: Path, field: Field, z: Latent, t: Times, s: Times) -> Latent:
    """Heun's rule, second order (EDM Alg. 1): the slopes at both ends averaged; Euler where sigma_s = 0."""
    here = field(z, t)
    end = ride(path, here, s)
    clean = path.sigma(s) == 0  # eps is 0/0 there; ask at t instead and drop the answer
    there = field(end, jnp.where(clean, t, s))
    return end + expand(jnp.where(clean, 0, eps_gap(path, t, s) / 2), z) * (there.eps - here.eps)


def dpm_solver(path: Path, field: Field, z: Latent, t: Times, s: Times) -> Latent:
    """DPM-Solver-2S, second order, r = 1/2 (DPM-Solver Alg. 1): eps taken halfway in lambda.

    Where alpha_t = 0 (zero terminal SNR) the eps form has no limit and the step is DDIM.
    """
    here = field(z, t)
    there = _halfway(path, field, here, t, s)
    return ride(path, here, s) + expand(eps_gap(path, t, s), z) * (there.eps - here.eps)


def dpm_solver_pp(path: Path, field: Field, z: Latent, t: Times, s: Times) -> Latent:
    """DPM-Solver++(2S), second order, r = 1/2 (DPM-Solver++ Alg. 1): x0 taken halfway in lambda."""
    here = field(z, t)
    there = _halfway(path, field, here, t, s)
    return ride(path, here, s) + expand(x0_gap(path, t, s), z) * (there.x0 - here.x0)


euler = ddim  # in (z / alpha, sigma / alpha) DDIM is Euler's rule; on VE the two coincide letter by letter

SOLVERS: dict[str, Solver] = {
    "ddim": ddim,
    "euler": euler,
    "heun": heun,
    "dpm_solver": dpm_solver,
    "dpm_solver_pp": dpm_solver_pp,
}


def get(name: str) -> Solver:
    """The solver of that name; ValueError lists the names."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; choose one of {', '.join(SOLVERS)}")
    return SOLVERS[name]


def ride(path: Path, prediction: Prediction, s: Times) -> Latent:
    """Where a prediction held fixed leads at time s: alpha_s x0 + sigma_s eps."""
    x0, eps = prediction
    return expand(path.alpha(s), x0) * x0 + expand(path.sigma(s), eps) * eps


def eps_gap(path: Path, t: Times, s: Times) -> PerSample:
    """What a unit of eps changes in z_s at fixed z_t: sigma_s - alpha_s sigma_t / alpha_t; 0 if alpha_t = 0.

    In lambda: -sigma_s (e^h - 1) with h = lambda_s - lambda_t.
    """
    alpha_t = path.alpha(t)
    return jnp.where(alpha_t == 0, 0, path.sigma(s) - divide(path.alpha(s) * path.sigma(t), alpha_t))


def x0_gap(path: Path, t: Times, s: Times) -> PerSample:
    """What a unit of x0 changes in z_s at fixed z_t: alpha_s - sigma_s alpha_t / sigma_t; 0 if sigma_t = 0.

    In lambda: -alpha_s (e^-h - 1) with h = lambda_s - lambda_t.
    """
    sigma_t = path.sigma(t)
    return jnp.where(sigma_t == 0, 0, path.alpha(s) - divide(path.sigma(s) * path.alpha(t), sigma_t))


def _halfway(path: Path, field: Field, here: Prediction, t: Times, s: Times) -> Prediction:
    """The field at the middle of [t, s] in lambda, reached by a first-order step."""
    middle = path.time((path.lam(t) + path.lam(s)) / 2)
    return field(ride(path, here, middle), middle)
