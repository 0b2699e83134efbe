"""Memory of a traced function without a compiler: what is alive at once, computed in the order it was written in."""

from collections.abc import Callable, Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

# Fused into what reads them: no memory of their own, but what they are made from stays.
VIEWS = ("broadcast_in_dim", "convert_element_type", "copy", "expand_dims", "reshape", "sharding_constraint", "squeeze",
         "transpose")  # fmt: skip


def peak_bytes(closed: ClosedJaxpr, size: Callable[[Any], int]) -> int:
    """Most bytes alive at once of what a function makes; its arguments, which are there anyway, do not count.

    `size` gives the bytes of an abstract value. A compiler that fuses well needs less, one that pads needs more.
    """
    return _peak(closed.jaxpr, size, {})


def _peak(jaxpr: Jaxpr, size: Callable[[Any], int], known: dict[int, int]) -> int:
    if id(jaxpr) in known:
        return known[id(jaxpr)]
    root: dict[Var, Var] = {}  # of a view
    last: dict[Var, int] = {}  # equation that reads it, through views
    own = lambda v: root.get(v, v)
    for i, eqn in enumerate(jaxpr.eqns):
        for v in eqn.invars:
            if not isinstance(v, Literal):
                last[own(v)] = i
        if eqn.primitive.name in VIEWS and not isinstance(eqn.invars[0], Literal):
            root[eqn.outvars[0]] = own(eqn.invars[0])
    for v in jaxpr.outvars:
        if not isinstance(v, Literal):
            last[own(v)] = len(jaxpr.eqns)
    alive, most = 0, 0
    held: dict[Var, int] = {}
    ends: dict[int, list[Var]] = {}
    for i, eqn in enumerate(jaxpr.eqns):
        made = {v: size(v.aval) for v in eqn.outvars if v not in root}
        inner = max((_peak(sub, size, known) for sub in inside(eqn.params)), default=0)
        outputs = sum(made.values())
        # A loop stacks its results beside what one turn of it needs; others' results are made inside.
        most = max(most, alive + (outputs + inner if eqn.primitive.name == "scan" else max(outputs, inner)))
        for v, bytes_ in made.items():
            if last.get(v, i) > i:
                held[v], alive = bytes_, alive + bytes_
                ends.setdefault(last[v], []).append(v)
        for v in ends.pop(i, ()):
            alive -= held.pop(v)
    known[id(jaxpr)] = most
    return most


def inside(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """The functions within an equation of these parameters."""
    for value in params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each
