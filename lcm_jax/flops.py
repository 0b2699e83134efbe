"""How much a function computes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def flops(call: Callable[..., Any], *arguments: Any) -> float:
    """Operations of one call before a compiler has seen it; what repeats in a loop counts once.

    Arguments are arrays or their shapes. nan where nobody counts.
    """
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # no GPU's plug-in counts
        return float((jax.jit(call).lower(*bare).cost_analysis() or {}).get("flops", np.nan))
