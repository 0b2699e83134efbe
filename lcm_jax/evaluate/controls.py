"""Images whose worth is known beforehand, to be scored beside the generated ones: blurred real ones."""

import numpy as np

from lcm_jax.evaluate.features import Images

REACH = 4  # standard deviations after which the kernel is cut off


def blur(images: Images, sigma: float = 1.0) -> Images:
    """Images after a Gaussian blur of `sigma` pixels, edges repeated: looks alike, is plainly worse.

    Raises ValueError for sigma <= 0.
    """
    if sigma <= 0:
        raise ValueError(f"a blur of {sigma:g} pixels is none; give a sigma above 0")
    radius = max(1, round(REACH * sigma))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    x = images.astype(np.float32)
    for axis in (1, 2):
        n = x.shape[axis]
        pad = [(radius, radius) if i == axis else (0, 0) for i in range(4)]
        padded = np.pad(x, pad, mode="edge")
        x = sum(k * padded.take(range(i, i + n), axis=axis) for i, k in enumerate(kernel))
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
