"""What the two sides of the comparison with PyTorch have in common: sizes, settings, the work asked for."""

import ctypes
import gc
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.unet import UNetConfig

SKIP, T, W = 20, 1000, (2.0, 14.0)  # LCM's: skipping step, table length, law of w
DELTA, MU, EMA, RATE, DECAY, B1, B2, CLIP = 1e-3, 0.95, 0.9999, 1e-5, 1e-2, 0.9, 0.999, 1.0
W_WIDTH, TOKENS, SAMPLE_STEPS, SAMPLE_W = 256, 77, 4, 7.0
MATMUL, CONV = 2048, (8, 32, 256)  # of the ceilings: sides of a matrix; batch, pixels a side, channels


@dataclass(frozen=True)
class Case:
    """One comparison; both sides build their networks from it."""

    unet: UNetConfig  # the teacher's; the student's has w_width besides
    autoencoder: AutoencoderConfig
    size: int  # of latents, pixels a side
    batch: int
    dtype: str  # compute: "float32", "bfloat16"
    device: str  # "cpu", "cuda"
    threads: int


# 18.8 M parameters with Stable Diffusion 1.5's parts - attention to the caption at full resolution, as many heads on
# every level, heads of about its widths (32 to 128; there 40 to 160) - and, on 32 x 32 latents, its mix of work: 51 %
# of the multiplications in convolutions, 32 % in linear maps, 17 % in products of attention (there 55, 29, 16).
# The autoencoder has a quarter of its channels, which makes its share of sampling that of SD 1.5 as well.
PRESETS = {
    "small": Case(
        UNetConfig(
            channels=(64, 128, 256), attention=(True, True, True), depth=(1, 1, 1), heads=(2, 2, 2), layers=1
        ),
        AutoencoderConfig(channels=(32, 64, 128, 128)),
        size=32,
        batch=8,
        dtype="float32",
        device="cpu",
        threads=1,
    ),
    "sd15": Case(UNetConfig(), AutoencoderConfig(), 64, 16, "bfloat16", "cuda", 1),
    # For tests: seconds.
    "tiny": Case(
        UNetConfig((16, 32), (False, True), (1, 1), (2, 2), 1, context_width=8, norm_groups=8),
        AutoencoderConfig(channels=(16, 16), layers=1, norm_groups=8),
        size=8,
        batch=2,
        dtype="float32",
        device="cpu",
        threads=1,
    ),
}


# 75 M: Stable Diffusion's own widths on the two levels that take most of its time.
WIDE = UNetConfig(channels=(320, 640), attention=(True, True), depth=(1, 1), heads=(8, 8), layers=1)
PRESETS["wide"] = replace(PRESETS["small"], unet=WIDE, batch=2)


def batch(case: Case, seed: int = 0) -> dict[str, np.ndarray]:
    """Latent moments and captions, float32; the unconditional caption is one of its own."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    shape = (case.batch, case.size, case.size, case.unet.latent_channels)
    return {
        "mean": 5 * draw(*shape),  # of Stable Diffusion's raw latents, whose scale is 0.18
        "std": np.full(shape, 0.1, np.float32),
        "context": draw(case.batch, TOKENS, case.unet.context_width),
        "uncond": draw(TOKENS, case.unet.context_width),
    }


def peak_memory_mb() -> float:
    """The most memory this process has held: of its own life, where ru_maxrss begins with its parent's."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    own = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return (own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024 / 1e6


def forget_peak_memory() -> None:
    """Sets this process's peak back to what it holds now, less what it has freed; Linux only, elsewhere it stays."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: gives back what compiling left
        if trim is not None:
            trim(0)
        clear.write_text("5")


def best(call: Callable[[], None], repeats: int = 9) -> float:
    """Seconds of the fastest of `repeats` calls after one that warms up."""
    call()
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)
