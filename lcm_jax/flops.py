"""How much a function computes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

from lcm_jax.parallel.liveness import inside


def flops(call: Callable[..., Any], *arguments: Any) -> float:
    """Operations of one call before a compiler has seen it; a scan's as often as it repeats, a while loop's once.

    Arguments are arrays or their shapes. nan where nobody counts.
    """
    bare = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # no GPU's plug-in counts
        traced = jax.jit(call).trace(*bare)
        return _counted(traced) + _again(traced.jaxpr.jaxpr, {})


def _counted(traced: Any) -> float:
    """What XLA counts, for which every loop turns once."""
    return float((traced.lower().cost_analysis() or {}).get("flops", np.nan))


def _again(jaxpr: Jaxpr, known: dict[str, float]) -> float:
    """Operations of the turns of scans after the first."""
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "scan":
            body, turns = eqn.params["jaxpr"], eqn.params["length"]
            total += (turns - 1) * _once(body, known) + turns * _again(body.jaxpr, known)
        else:
            total += sum(_again(sub, known) for sub in inside(eqn.params))
    return total


def _once(body: ClosedJaxpr, known: dict[str, float]) -> float:
    """Operations of one turn; like loops, of which a network has many, are counted once."""
    name = str(body.jaxpr)
    if name not in known:
        arguments = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in body.in_avals]
        known[name] = _counted(jax.jit(jaxpr_as_fun(body)).trace(*arguments))
    return known[name]
