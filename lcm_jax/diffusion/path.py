"""How data becomes noise: signal rate alpha(t), noise rate sigma(t), and the three views of a prediction."""

import abc
import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lcm_jax.typing import Latent, PerSample, Times

KINDS = ("eps", "v", "x0")
SCHEDULES = ("scaled_linear", "linear", "cosine")
LOG_ALPHA_FLOOR = -12 * np.log(2.0)  # stands in for log 0 at a zero terminal SNR


class Prediction(NamedTuple):
    """What a field returns: clean sample and noise, both finite even where one alone would say nothing."""

    x0: Latent
    eps: Latent


class Path(abc.ABC):
    """z_t = alpha(t) z0 + sigma(t) eps, with t growing from data to noise. Every method maps [b] to [b]."""

    variance_preserving: ClassVar[bool]
    zero_terminal_snr: ClassVar[bool] = False

    @abc.abstractmethod
    def alpha(self, t: Times) -> PerSample:
        """Signal rate."""

    @abc.abstractmethod
    def sigma(self, t: Times) -> PerSample:
        """Noise rate."""

    @abc.abstractmethod
    def lam(self, t: Times) -> PerSample:
        """Half log-SNR, log(alpha / sigma); falls as t grows."""

    @abc.abstractmethod
    def time(self, lam: PerSample) -> PerSample:
        """Inverse of `lam`."""


@dataclasses.dataclass(frozen=True, eq=False)
class VPTable(Path):
    """A variance-preserving path given by its signal rates at t = 0 .. T-1 (diffusers: sqrt(alphas_cumprod)).

    Integer times read the table exactly; fractional ones interpolate log alpha linearly (DPM-Solver, app. D).
    Tables are kept in float64 and rounded once, so sigma stays exact near the data. With a last rate of 0
    (zero terminal SNR) the integer T-1 gives alpha = 0; `lam` and fractional times stop at alpha = 2^-12.
    """

    alphas: tuple | np.ndarray
    variance_preserving: ClassVar[bool] = True

    def __post_init__(self):
        alphas = np.asarray(self.alphas, np.float64)
        if alphas.ndim != 1 or len(alphas) < 2:
            raise ValueError(f"alphas must be a list of at least 2 signal rates, got shape {alphas.shape}")
        if not (alphas[0] < 1 and alphas[-1] >= 0 and np.all(np.diff(alphas) < 0)):
            raise ValueError("alphas must fall strictly from below 1 to 0 or more; check the beta schedule")
        object.__setattr__(self, "alphas", alphas)

    @property
    def T(self) -> int:
        """Number of table entries."""
        return len(self.alphas)

    @property
    def zero_terminal_snr(self) -> bool:
        """True if nothing of the data is left at t = T-1."""
        return bool(self.alphas[-1] == 0)

    @property
    def sigmas(self) -> np.ndarray:
        """Noise rates, float64 [T]."""
        return np.sqrt(1 - self.alphas**2)

    @property
    def log_alphas(self) -> np.ndarray:
        """Log signal rates, float64 [T], never below log 2^-12 at a zero terminal SNR."""
        return np.log(np.where(self.alphas == 0, np.exp(LOG_ALPHA_FLOOR), self.alphas))

    def alpha(self, t: Times) -> PerSample:
        return _lookup(self.alphas, t) if _is_index(t) else jnp.exp(self._log_alpha(t))

    def sigma(self, t: Times) -> PerSample:
        return _lookup(self.sigmas, t) if _is_index(t) else jnp.sqrt(-jnp.expm1(2 * self._log_alpha(t)))

    def lam(self, t: Times) -> PerSample:
        log_alpha = self._log_alpha(t)
        return log_alpha - 0.5 * jnp.log(-jnp.expm1(2 * log_alpha))

    def time(self, lam: PerSample) -> PerSample:
        log_alpha = -0.5 * jax.nn.softplus(-2 * lam)
        return jnp.interp(log_alpha, jnp.asarray(self.log_alphas[::-1]), jnp.arange(self.T - 1.0, -1.0, -1.0))

    def _log_alpha(self, t: Times) -> PerSample:
        if _is_index(t):
            return _lookup(self.log_alphas, t)
        return jnp.interp(t, jnp.arange(float(self.T)), jnp.asarray(self.log_alphas))


@dataclasses.dataclass(frozen=True)
class VE(Path):
    """The variance-exploding path of EDM: alpha = 1 and time is sigma (EDM Tab. 1)."""

    variance_preserving: ClassVar[bool] = False

    def alpha(self, t: Times) -> PerSample:
        return jnp.ones_like(self.sigma(t))

    def sigma(self, t: Times) -> PerSample:
        return 1.0 * t  # whole numbers become floats

    def lam(self, t: Times) -> PerSample:
        return -jnp.log(t)

    def time(self, lam: PerSample) -> PerSample:
        return jnp.exp(-lam)


def vp_path(
    schedule: str = "scaled_linear",
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    T: int = 1000,
    zero_terminal_snr: bool = False,
) -> VPTable:
    """The discrete path of a beta schedule: alpha_t = sqrt(prod(1 - beta)).

    "scaled_linear" is Stable Diffusion's (linear in sqrt(beta)), "linear" DDPM's, "cosine" Nichol &
    Dhariwal's eq. 17 (which ignores the two betas). `zero_terminal_snr` shifts and scales alpha so that
    alpha_{T-1} = 0 (Lin et al. 2023, Alg. 1). Raises ValueError for an unknown schedule.
    """
    if schedule == "scaled_linear":
        betas = np.linspace(beta_start**0.5, beta_end**0.5, T) ** 2
    elif schedule == "linear":
        betas = np.linspace(beta_start, beta_end, T)
    elif schedule == "cosine":
        bar = np.cos((np.arange(T + 1) / T + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - bar[1:] / bar[:-1], 0.999)
    else:
        raise ValueError(f"unknown beta schedule {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    alphas = np.sqrt(np.cumprod(1 - betas))
    if zero_terminal_snr:
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
    return VPTable(alphas)


def diffuse(path: Path, z0: Latent, eps: Latent, t: Times) -> Latent:
    """z_t = alpha_t z0 + sigma_t eps."""
    return expand(path.alpha(t), z0) * z0 + expand(path.sigma(t), z0) * eps


def predict(path: Path, kind: str, output: Latent, z: Latent, t: Times) -> Prediction:
    """Both views of a network output of the given kind at z_t (LCM sec. 4.1 and app. D).

    Kinds: "eps", "v" = alpha eps - sigma x0 (variance-preserving paths), "x0". Where sigma is 0 no noise can
    be read off and eps is 0. Raises ValueError for an unknown kind, for "v" on a path that is not variance
    preserving, and for "eps" on a path of zero terminal SNR, where eps says nothing about x0.
    """
    _check_kind(path, kind)
    alpha, sigma = expand(path.alpha(t), z), expand(path.sigma(t), z)
    if kind == "eps":
        return Prediction(x0=(z - sigma * output) / alpha, eps=output)
    if kind == "v":
        return Prediction(x0=alpha * z - sigma * output, eps=alpha * output + sigma * z)
    return Prediction(x0=output, eps=divide(z - alpha * output, sigma))


def output_of(path: Path, kind: str, z0: Latent, eps: Latent, t: Times) -> Latent:
    """What a network of the given kind should have said: the training target, inverse of `predict`."""
    _check_kind(path, kind)
    if kind == "v":
        return expand(path.alpha(t), z0) * eps - expand(path.sigma(t), z0) * z0
    return eps if kind == "eps" else z0


def pure_noise(path: Path, noise: Latent, t: Times) -> Latent:
    """Where samplers start: unit noise itself on a variance-preserving path, scaled by sigma_t otherwise."""
    return noise if path.variance_preserving else expand(path.sigma(t), noise) * noise


def expand(v: PerSample, like: Latent) -> Float[Array, "b *ones"]:
    """[b] -> [b, 1, .., 1], as many axes as `like` has, so that the product needs no rank promotion."""
    return v.reshape(v.shape + (1,) * (like.ndim - 1))


def divide(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0 (finite in value and gradient)."""
    empty = b == 0
    return jnp.where(empty, 0, a / jnp.where(empty, 1, b))


def _check_kind(path: Path, kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"unknown prediction kind {kind!r}; choose one of {', '.join(KINDS)}")
    if kind == "v" and not path.variance_preserving:
        raise ValueError(f"v needs a variance-preserving path, not {type(path).__name__}; use eps or x0")
    if kind == "eps" and path.zero_terminal_snr:
        raise ValueError("eps says nothing about x0 at zero terminal SNR; use v or x0, or a plain schedule")


def _is_index(t: Times) -> bool:
    return jnp.issubdtype(t.dtype, jnp.integer)


def _lookup(table: np.ndarray, t: Times) -> PerSample:
    return jnp.asarray(table)[t]
