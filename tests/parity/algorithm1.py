"""Latent consistency distillation in PyTorch, written from the paper (arXiv 2310.04378) with modules of diffusers.

Nothing of lcm_jax is used here. Rates, solvers, boundary, loss and average follow the paper's formulas as printed:
increments Psi for each caption which are then combined (eqs 13, 18), and eps for every network output.
"""

from dataclasses import dataclass

import numpy as np
import torch

T = 1000


@dataclass
class Told:
    """What a network is told: caption states, and SDXL's pooled text and size ids."""

    context: torch.Tensor
    added: dict[str, torch.Tensor] | None = None


class Schedule:
    """Stable Diffusion's alpha_t and sigma_t in float64, and lambda = log(alpha / sigma)."""

    def __init__(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64) ** 2
        self.alpha = torch.cumprod(1 - betas, 0).sqrt()
        self.sigma = (1 - self.alpha**2).sqrt()

    def at(self, t: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(alpha, sigma) of whole times, shaped to multiply latents."""
        return tuple(table[t].to(like.dtype).view(-1, 1, 1, 1) for table in (self.alpha, self.sigma))

    def halfway(self, t: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """lambda in the middle of [t, s], and the fractional time there, log alpha being linear between whole times."""
        log_alpha = self.alpha.log().numpy()
        lam = log_alpha - self.sigma.log().numpy()
        middle = (lam[t] + lam[s]) / 2
        wanted = -0.5 * np.log1p(np.exp(-2 * middle))
        return torch.tensor(middle), torch.tensor(np.interp(wanted, log_alpha[::-1], np.arange(T - 1.0, -1.0, -1.0)))


class Distillation:
    """Teacher, student and target of one run, and the step that trains the student."""

    def __init__(self, teacher, student, target, kind: str, solver: str, distance: str, delta: float):
        self.teacher, self.student, self.target = teacher.requires_grad_(False), student, target.requires_grad_(False)
        self.kind, self.solver, self.distance, self.delta = kind, solver, distance, delta
        self.schedule = Schedule()

    def ask(self, net, z, t, told: Told, w_features=None) -> torch.Tensor:
        return net(z, t, told.context, timestep_cond=w_features, added_cond_kwargs=told.added).sample

    def eps(self, output, z, alpha, sigma):
        """The noise that an output means."""
        return output if self.kind == "eps" else alpha * output + sigma * z

    def f(self, net, z, t, told: Told, w_features):
        """Eq. 9 with sigma_data .5 and times scaled by 10."""
        alpha, sigma = self.schedule.at(t, z)
        eps = self.eps(self.ask(net, z, t, told, w_features), z, alpha, sigma)
        scaled = 10.0 * t.to(z.dtype).view(-1, 1, 1, 1)
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        return c_skip * z + c_out * (z - sigma * eps) / alpha

    def increment(self, z, t, s, told: Told):
        """Psi of DDIM (eq. 18): what one step of the teacher adds to z."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule.at(t, z), self.schedule.at(s, z)
        eps = self.eps(self.ask(self.teacher, z, t, told), z, alpha_t, sigma_t)
        return alpha_s / alpha_t * z - sigma_s * (sigma_t * alpha_s / (alpha_t * sigma_s) - 1) * eps - z

    def guided_x0(self, z, t, alpha, sigma, told: Told, empty: Told, w):
        """(z - sigma eps~) / alpha with eps~ of eq. 12."""
        with_caption, without = (self.eps(self.ask(self.teacher, z, t, of), z, alpha, sigma) for of in (told, empty))
        return (z - sigma * ((1 + w) * with_caption - w * without)) / alpha

    def earlier(self, z, t, s, told: Told, empty: Told, w):
        """The teacher's guided step from t to s (eq. 13)."""
        if self.solver == "ddim":
            return z + (1 + w) * self.increment(z, t, s, told) - w * self.increment(z, t, s, empty)
        # DPM-Solver++(2S), r = 1/2: combining two solves is exact for first order only, so eps~ is solved with.
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule.at(t, z), self.schedule.at(s, z)
        middle, time = self.schedule.halfway(t, s)
        middle = middle.to(z.dtype).view(-1, 1, 1, 1)
        alpha_m, sigma_m = torch.sigmoid(2 * middle).sqrt(), torch.sigmoid(-2 * middle).sqrt()
        lam_t, lam_s = (alpha_t / sigma_t).log(), (alpha_s / sigma_s).log()
        half, whole = middle - lam_t, lam_s - lam_t
        x0 = self.guided_x0(z, t, alpha_t, sigma_t, told, empty, w)
        u = sigma_m / sigma_t * z - alpha_m * torch.expm1(-half) * x0
        x0 = self.guided_x0(u, time, alpha_m, sigma_m, told, empty, w)
        return sigma_s / sigma_t * z - alpha_s * torch.expm1(-whole) * x0

    def loss(self, z0, noise, t, s, w, w_features, told: Told, empty: Told):
        """L of Algorithm 1 for drawn noise, times and guidance (with its embedding); the gradient is the student's."""
        alpha, sigma = self.schedule.at(t, z0)
        z_t = alpha * z0 + sigma * noise
        with torch.no_grad():
            z_s = self.earlier(z_t, t, s, told, empty, w.to(z0.dtype).view(-1, 1, 1, 1))
            target = self.f(self.target, z_s, s, told, w_features)
        difference = self.f(self.student, z_t, t, told, w_features) - target
        if self.distance == "l2":
            return difference.pow(2).mean()
        return ((difference**2 + self.delta**2).sqrt() - self.delta).mean()

    def average(self, mu: float) -> None:
        """theta- <- mu theta- + (1 - mu) theta."""
        with torch.no_grad():
            for kept, new in zip(self.target.parameters(), self.student.parameters(), strict=True):
                kept.copy_(mu * kept + (1 - mu) * new)
