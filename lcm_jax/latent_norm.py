"""Gives an autoencoder latents of zero mean and unit variance by folding their statistics into its 1x1 maps."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from lcm_jax.models.functional import Net
from lcm_jax.typing import Params

PerChannel = Float[np.ndarray, " c"]


def statistics(
    net: Net, params: Params, batches: Iterable[UInt8[np.ndarray, "_ h w 3"]]
) -> tuple[PerChannel, PerChannel]:
    """Per-channel mean and standard deviation of posterior samples over all images, float64, exact from moments."""

    @jax.jit
    def moments(params, images):
        encoded = net.apply(params, images.astype(jnp.float32) / 127.5 - 1.0, method="encode")
        return jnp.split(encoded, 2, axis=-1)

    count, total, square = 0, 0.0, 0.0
    for images in batches:
        mean, logvar = (np.asarray(x, np.float64) for x in moments(params, images))
        count += mean[..., 0].size
        total += mean.sum((0, 1, 2))
        square += (mean**2 + np.exp(logvar)).sum((0, 1, 2))
    mean = total / count
    return mean, np.sqrt(square / count - mean**2)


def fold(params: Params, mean: PerChannel, std: PerChannel) -> Params:
    """The same autoencoder with latent (z - mean) / std: quant_conv divides, post_quant_conv multiplies back."""
    c = len(mean)
    into, out = params["quant_conv"], params["post_quant_conv"]
    kernel, bias = (np.asarray(into[k], np.float64) for k in ("kernel", "bias"))
    quant = {
        "kernel": np.concatenate([kernel[..., :c] / std, kernel[..., c:]], axis=-1),
        "bias": np.concatenate([(bias[:c] - mean) / std, bias[c:] - 2 * np.log(std)]),
    }
    kernel, bias = (np.asarray(out[k], np.float64) for k in ("kernel", "bias"))
    post_quant = {"kernel": kernel * std[:, None], "bias": bias + np.einsum("c,hwcd->d", mean, kernel)}
    as_float32 = lambda tree: {k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}
    return {**params, "quant_conv": as_float32(quant), "post_quant_conv": as_float32(post_quant)}
