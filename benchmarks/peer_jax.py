"""lcm_jax's side of the comparison: its own step and sampler, jitted, and the ceilings of the same library."""

import dataclasses
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from benchmarks import peer_case
from benchmarks.peer_case import Case
from lcm_jax.diffusion.boundary import LCMBoundary, consistency
from lcm_jax.diffusion.field import network_field
from lcm_jax.diffusion.guidance import guidance_embedding
from lcm_jax.diffusion.path import vp_path
from lcm_jax.flops import flops
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.unet import unet
from lcm_jax.objectives import lcd
from lcm_jax.sampling import few_step
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.step import init_state, train_step
from lcm_jax.weights.bijection import to_torch

KIND = "eps"
SAMPLED = ("student", "autoencoder")


def networks(case: Case) -> dict:
    """teacher, student, autoencoder."""
    sized = dataclasses.replace(case.unet, dtype=case.dtype)
    return {
        "teacher": unet(sized),
        "student": unet(dataclasses.replace(sized, w_width=peer_case.W_WIDTH)),
        "autoencoder": autoencoder(dataclasses.replace(case.autoencoder, dtype=case.dtype)),
    }


def weights(case: Case) -> dict:
    """Random ones in which every input matters: the student's map of w, which starts at zero, is drawn too."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, dtype=np.float32)
        if path[-1].key == "kernel":
            return noise / np.float32(np.prod(leaf.shape[:-1]) ** 0.5)
        return np.float32(0.1) * noise + np.float32(path[-1].key == "scale")

    return {name: jax.tree.map_with_path(draw, net.abstract()) for name, net in networks(case).items()}


def write_weights(case: Case, folder: Path) -> None:
    """The weights this side draws, as files with PyTorch's names and layouts."""
    for name, params in weights(case).items():
        save_file(to_torch(params), folder / f"{name}.safetensors")


class Training:
    """The jitted training step with its state."""

    def __init__(self, case: Case):
        nets, params = networks(case), weights(case)
        objective = lcd.build(
            vp_path(T=peer_case.T), KIND, peer_case.SKIP, delta=peer_case.DELTA, w_min=peer_case.W[0],
            w_max=peer_case.W[1], w_width=peer_case.W_WIDTH, mu=peer_case.MU,
        )  # fmt: skip
        # What was drawn leaves with the metrics, for the other side to take.
        objective = dataclasses.replace(objective, couple=lambda z0, eps: (eps, {"z0": z0, "eps": eps}))
        tx = optimizer(
            "adamw", peer_case.RATE, b1=peer_case.B1, b2=peer_case.B2, weight_decay=peer_case.DECAY,
            clip=peer_case.CLIP,
        )  # fmt: skip
        step = train_step(objective, nets["student"].apply, nets["teacher"].apply, tx, ema_decay=peer_case.EMA)
        arrays = {name: jnp.asarray(x) for name, x in peer_case.batch(case).items()}
        uncond = {"context": arrays.pop("uncond")}
        self.state = jax.jit(lambda params: init_state(params, tx, objective))(params["student"])
        teacher = jax.tree.map(lambda x: jnp.asarray(x, case.dtype), params["teacher"])
        self.frozen = {
            "teacher": teacher,
            "batch": {"scale": jnp.float32(case.autoencoder.scale), "uncond": uncond},
        }
        self.batch, self.key = arrays, jax.random.key(0)
        begun = time.perf_counter()
        self.step = jax.jit(step, donate_argnums=0).lower(self.state, self.frozen, self.batch, self.key).compile()
        self.compile_seconds = time.perf_counter() - begun
        self.flops = flops(step, self.state, self.frozen, self.batch, self.key)

    def check(self) -> dict[str, np.ndarray]:
        """What the next step draws and what comes of it: clean latents, noise, times, w, loss, gradient norm."""
        self.state, metrics = self.step(self.state, self.frozen, self.batch, self.key)
        return {name: np.asarray(x) for name, x in metrics.items()}

    def run(self) -> None:
        """One step, waited for."""
        self.state, metrics = self.step(self.state, self.frozen, self.batch, self.key)
        jax.block_until_ready((self.state, metrics))


class Sampling:
    """Four steps of the student and the decoder in one jitted function."""

    def __init__(self, case: Case):
        nets, params = networks(case), weights(case)
        path, times = vp_path(T=peer_case.T), few_step.lcm_times(peer_case.SAMPLE_STEPS)
        self.params = {name: jax.tree.map(lambda x: jnp.asarray(x, case.dtype), params[name]) for name in SAMPLED}
        self.context = jnp.asarray(peer_case.batch(case)["context"])
        self.w = jnp.full(case.batch, peer_case.SAMPLE_W)
        self.shape = (case.size, case.size, case.unet.latent_channels)
        self.keys = jax.random.split(jax.random.key(1), case.batch)

        def sample(params, noise, context, w):
            features = guidance_embedding(w, peer_case.W_WIDTH)
            net = partial(nets["student"].apply, params["student"], context=context, w_features=features)
            f = consistency(path, LCMBoundary(), network_field(path, KIND, net))
            z = few_step.sample(f, path, noise.__getitem__, times) / case.autoencoder.scale
            return jnp.clip(nets["autoencoder"].apply(params["autoencoder"], z, method="decode"), -1, 1)

        fresh = lambda keys: few_step.fresh(keys, self.shape)
        self.draw = jax.jit(lambda keys: jnp.stack([fresh(keys)(i) for i in range(len(times))]))
        args = (self.params, self.draw(self.keys), self.context, self.w)
        begun = time.perf_counter()
        lowered = jax.jit(sample).lower(*args)
        self.sample = lowered.compile()
        self.compile_seconds = time.perf_counter() - begun
        # A loop counts once in what XLA says of the whole, so its parts are counted.
        now = jnp.zeros(case.batch, jnp.int32)
        features = jnp.zeros((case.batch, peer_case.W_WIDTH))
        unet = flops(nets["student"].apply, self.params["student"], args[1][0], now, self.context, features)
        decode = partial(nets["autoencoder"].apply, method="decode")
        self.flops = len(times) * unet + flops(decode, self.params["autoencoder"], args[1][0])

    def check(self) -> dict[str, np.ndarray]:
        """One draw of noise a step, and the images."""
        noise = self.draw(self.keys)
        return {"noise": np.asarray(noise), "images": np.asarray(self.sample(self.params, noise, self.context, self.w))}

    def run(self) -> None:
        """One batch of images, waited for."""
        jax.block_until_ready(self.sample(self.params, self.draw(self.keys), self.context, self.w))


def ceilings(case: Case) -> dict[str, float]:
    """GFLOP/s of a square matrix product and of a 3x3 convolution, each the best of a few."""
    n, (b, side, c) = peer_case.MATMUL, peer_case.CONV
    a, x, k = (jnp.ones(shape, case.dtype) for shape in ((n, n), (b, side, side, c), (3, 3, c, c)))
    layout = jax.lax.conv_dimension_numbers(x.shape, k.shape, ("NHWC", "HWIO", "NHWC"))
    product = jax.jit(lambda a: a @ a)
    conv = jax.jit(lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=layout))
    seconds = lambda call, *args: peer_case.best(lambda: jax.block_until_ready(call(*args)))
    return {
        "matmul": 2 * n**3 / seconds(product, a) / 1e9,
        "conv": 18 * b * side**2 * c**2 / seconds(conv, x, k) / 1e9,
    }


def memory_mb(case: Case) -> float:
    """Peak of the GPU's memory where there is one, of this process otherwise."""
    stats = jax.local_devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 1e6 if stats else peer_case.peak_memory_mb()


def forget_peak(case: Case) -> None:
    """Begins the peak anew, where that can be done: not on GPUs."""
    peer_case.forget_peak_memory()
