"""A frozen network over all devices of this host: weights on each, the rows of a batch shared out."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import batch_sharding, replicate
from lcm_jax.typing import Params


def spread(function: Callable[..., Any], params: Params) -> Callable[[np.ndarray], jax.Array | np.ndarray]:
    """The jitted rows -> function(params, rows) with rows split over the devices; any number of rows is taken.

    Hosts do not wait for each other: each has a mesh of its own devices and as many batches as it likes. Products
    of float32 are taken as such: accelerators round them to 10 or fewer bits by default, which moves scores.
    """
    mesh = make_mesh(devices=jax.local_devices())
    parts, sharding = mesh.devices.size, batch_sharding(mesh)
    placed = replicate(params, mesh)

    @jax.jit
    def compiled(params: Params, rows: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return function(params, rows)

    def apply(rows: np.ndarray) -> jax.Array | np.ndarray:
        n = len(rows)
        if missing := -n % parts:
            rows = np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)])
        out = compiled(placed, jax.device_put(rows, sharding))
        return np.asarray(out)[:n] if missing else out

    return apply
