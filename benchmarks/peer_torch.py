"""PyTorch's side of the comparison: diffusers' networks under the same step and sampler, each as fast as it goes.

What is done for speed: teacher asked once for captioned and uncaptioned, inference mode around teacher and target,
channels last, fused AdamW, averages and clip over lists of tensors, scaled-dot-product attention, sampling without
a scheduler object; on GPUs bfloat16 autocast, a bfloat16 teacher, cuDNN's own search. Variants differ in what is
left to choose: memory layout and torch.compile.
"""

import contextlib
import dataclasses
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

from benchmarks import peer_case
from benchmarks.peer_case import Case
from lcm_jax.sampling.few_step import lcm_times
from lcm_jax.weights.diffusers_config import autoencoder_config, unet_config


class Side:
    """Networks, tables and settings of one variant."""

    def __init__(self, case: Case, folder: Path, variant: str):
        torch.set_num_threads(case.threads)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if case.device == "cuda" else "highest")
        self.case, self.folder, self.variant = case, folder, variant
        self.device, self.dtype = torch.device(case.device), getattr(torch, case.dtype)
        self.layout = torch.channels_last if "channels last" in variant else torch.contiguous_format
        betas = np.linspace(0.00085**0.5, 0.012**0.5, peer_case.T) ** 2
        bar = np.cumprod(1 - betas)
        self.alpha, self.sigma = (self.tensor(np.sqrt(x)) for x in (bar, 1 - bar))
        half = peer_case.W_WIDTH // 2
        self.per_w = 1000 * 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=self.device) / (half - 1))

    def tensor(self, array: np.ndarray) -> torch.Tensor:
        """float32 on the device; images from NHWC."""
        x = torch.tensor(array, dtype=torch.float32)
        return (x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) if x.ndim == 4 else x).to(self.device)

    def network(self, name: str, trained: bool = False, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
        """A network with the weights of the other side; attention is scaled_dot_product_attention by default."""
        if name == "autoencoder":
            net = AutoencoderKL.from_config(autoencoder_config(dataclasses.asdict(self.case.autoencoder), 8 * 64))
        else:
            sizes = dataclasses.asdict(self.case.unet) | ({} if name == "teacher" else {"w_width": peer_case.W_WIDTH})
            net = UNet2DConditionModel.from_config(unet_config(sizes, self.case.size))
        net.load_state_dict(load_file(self.folder / f"{name}.safetensors"))
        return net.to(self.device, dtype, memory_format=self.layout).train(trained).requires_grad_(trained)

    def compiled(self, call):
        """`call` through torch.compile where the variant says so."""
        if self.variant.startswith("eager"):
            return call
        return torch.compile(call, mode="max-autotune-no-cudagraphs" if self.variant.startswith("tuned") else None)

    def autocast(self):
        """Computes in the case's type where that is not float32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def guidance(self, w: torch.Tensor) -> torch.Tensor:
        """[sin, cos] of 1000 w, its angles in float64."""
        angle = w.double()[:, None] * self.per_w
        return torch.cat([angle.sin(), angle.cos()], -1).float()

    def at(self, table: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return table[t].view(-1, 1, 1, 1)

    def x0(self, z: torch.Tensor, t: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
        return (z - self.at(self.sigma, t) * eps) / self.at(self.alpha, t)

    def consistency(self, net, z, t, context, features) -> torch.Tensor:
        """f of a network that predicts eps, with LCM's boundary."""
        eps = net(z, t, context, timestep_cond=features, return_dict=False)[0].float()
        scaled = (10.0 * t).view(-1, 1, 1, 1)
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25) ** 0.5
        return c_skip * z + c_out * self.x0(z, t, eps)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Training(Side):
    """The training step with its state."""

    def __init__(self, case: Case, folder: Path, variant: str):
        super().__init__(case, folder, variant)
        self.teacher, self.target = self.network("teacher", dtype=self.dtype), self.network("student")
        self.student, self.ema = self.network("student", trained=True), self.network("student")
        self.params = list(self.student.parameters())
        self.optimizer = torch.optim.AdamW(
            self.params, peer_case.RATE, (peer_case.B1, peer_case.B2), weight_decay=peer_case.DECAY, fused=True
        )
        self.averages = [
            (list(net.parameters()), get_ema_multi_avg_fn(decay))
            for net, decay in ((self.target, peer_case.MU), (self.ema, peer_case.EMA))
        ]
        self.ask_teacher, self.ask_target, self.ask_student = map(
            self.compiled, (self.teacher, self.target, self.student)
        )
        arrays = peer_case.batch(case)
        self.mean, self.std, self.context = (self.tensor(arrays[k]) for k in ("mean", "std", "context"))
        self.both = torch.cat([self.context, self.tensor(arrays["uncond"]).expand_as(self.context)])
        begun = time.perf_counter()
        self.run()
        self.compile_seconds = time.perf_counter() - begun  # the first step; eager's is an ordinary one

    def draw(self) -> tuple[torch.Tensor, ...]:
        """z0, eps, t, w of one step."""
        b, on = self.case.batch, {"device": self.device}
        z0 = (self.mean + self.std * torch.randn_like(self.mean)) * self.case.autoencoder.scale
        t = torch.randint(peer_case.SKIP, peer_case.T, (b,), **on)
        low, high = peer_case.W
        return z0, torch.randn_like(z0), t, low + (high - low) * torch.rand(b, **on)

    def gradients(self, z0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """The loss; its gradients are left in the parameters."""
        s, features = t - peer_case.SKIP, self.guidance(w)
        z_t = self.at(self.alpha, t) * z0 + self.at(self.sigma, t) * eps
        with self.autocast():
            with torch.inference_mode():
                z2, t2 = torch.cat([z_t, z_t]), torch.cat([t, t])
                out = self.ask_teacher(z2, t2, self.both.to(self.dtype), return_dict=False)[0].float()
                (x_c, x_u), (e_c, e_u) = self.x0(z2, t2, out).chunk(2), out.chunk(2)
                scale = w.view(-1, 1, 1, 1)
                z_s = self.at(self.alpha, s) * (x_c + scale * (x_c - x_u))
                z_s += self.at(self.sigma, s) * (e_c + scale * (e_c - e_u))
                target = self.consistency(self.ask_target, z_s, s, self.context, features)
            online = self.consistency(self.ask_student, z_t, t, self.context, features)
        loss = (torch.sqrt((online - target) ** 2 + peer_case.DELTA**2) - peer_case.DELTA).mean()
        loss.backward()
        return loss

    def check(self, drawn: dict[str, np.ndarray]) -> dict[str, float]:
        """Loss and gradient norm of what the other side drew."""
        z0, eps = self.tensor(drawn["z0"]), self.tensor(drawn["eps"])
        t = torch.tensor(drawn["sample/t"], dtype=torch.long, device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        self.target.load_state_dict(load_file(self.folder / "student.safetensors"))
        self.student.load_state_dict(load_file(self.folder / "student.safetensors"))
        loss = self.gradients(z0, eps, t, self.tensor(drawn["sample/w"]))
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.params], foreach=True)
        return {"loss/mean": loss.item(), "grad_norm": norm.item()}

    def run(self) -> None:
        """One step, waited for."""
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients(*self.draw())
        torch.nn.utils.clip_grad_norm_(self.params, peer_case.CLIP, foreach=True)
        self.optimizer.step()
        for averaged, average in self.averages:
            average(averaged, self.params, None)
        self.wait()


class Sampling(Side):
    """Four steps of the student and the decoder."""

    def __init__(self, case: Case, folder: Path, variant: str):
        super().__init__(case, folder, variant)
        self.student = self.compiled(self.network("student", dtype=self.dtype))
        self.autoencoder = self.network("autoencoder", dtype=self.dtype)
        self.decode = self.compiled(self.autoencoder.decode)
        self.context = self.tensor(peer_case.batch(case)["context"])
        self.times = [int(t) for t in lcm_times(peer_case.SAMPLE_STEPS)]
        begun = time.perf_counter()
        self.run()
        self.compile_seconds = time.perf_counter() - begun

    @torch.inference_mode()
    def sample(self, noise: list[torch.Tensor]) -> torch.Tensor:
        """Images in [-1, 1], NCHW, of one draw of noise a step."""
        features = self.guidance(torch.full((self.case.batch,), peer_case.SAMPLE_W, device=self.device))
        context, z = self.context.to(self.dtype), noise[0]
        features = features.to(self.dtype)
        for i, now in enumerate(self.times):
            t = torch.full((self.case.batch,), now, device=self.device)
            if i:
                z = self.at(self.alpha, t) * z + self.at(self.sigma, t) * noise[i]
            eps = self.student(z.to(self.dtype), t, context, timestep_cond=features, return_dict=False)[0].float()
            scaled = 10.0 * now
            root = math.sqrt(scaled**2 + 0.25)
            z = 0.25 / root**2 * z + scaled / root * self.x0(z, t, eps)
        image = self.decode((z / self.case.autoencoder.scale).to(self.dtype), return_dict=False)[0]
        return image.float().clamp(-1, 1)

    def draws(self) -> list[torch.Tensor]:
        shape = (self.case.batch, self.case.unet.latent_channels, self.case.size, self.case.size)
        return [torch.randn(shape, device=self.device).contiguous(memory_format=self.layout) for _ in self.times]

    def check(self, noise: np.ndarray) -> np.ndarray:
        """Images, NHWC, of the other side's noise."""
        return self.sample([self.tensor(x) for x in noise]).permute(0, 2, 3, 1).cpu().numpy()

    def run(self) -> None:
        """One batch of images, waited for."""
        self.sample(self.draws())
        self.wait()


def ceilings(case: Case) -> dict[str, float]:
    """GFLOP/s of a square matrix product and of a 3x3 convolution, each the best of a few."""
    dtype, device = getattr(torch, case.dtype), torch.device(case.device)
    n, (b, side, c) = peer_case.MATMUL, peer_case.CONV
    a = torch.ones((n, n), dtype=dtype, device=device)
    x = torch.ones((b, c, side, side), dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    k = torch.ones((c, c, 3, 3), dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)

    def finished(call):
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        return {
            "matmul": 2 * n**3 / peer_case.best(lambda: finished(lambda: a @ a)) / 1e9,
            "conv": 18 * b * side**2 * c**2 / peer_case.best(lambda: finished(lambda: F.conv2d(x, k, padding=1))) / 1e9,
        }


def memory_mb(case: Case) -> float:
    """Peak of the GPU's memory where there is one, of this process otherwise."""
    return torch.cuda.max_memory_allocated() / 1e6 if case.device == "cuda" else peer_case.peak_memory_mb()


def forget_peak(case: Case) -> None:
    """Begins the peak anew, where that can be done: on GPUs it stays the whole process's, as the other side's does."""
    peer_case.forget_peak_memory()
