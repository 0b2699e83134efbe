"""Turns a Flax module builder into pure functions of nested dicts; no other layer sees Flax."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
from flax import nnx

from lcm_jax.typing import Params

Read = Callable[[str, jax.Array], jax.Array]
kept = lru_cache(maxsize=32)  # for what makes a Net of a config: laid out, traced and compiled once in a process


class Keys(nnx.Rngs):
    """A key for each parameter, the same as nnx.Rngs(key) gives.

    Draws are counted in Python: the counter of nnx.Rngs is an array, and each look at it under a trace walks
    through all that was traced before, which takes minutes for a large network.
    """

    def __init__(self, key: jax.Array):
        self.key, self.drawn = key, 0

    def params(self) -> jax.Array:
        """The next key."""
        self.drawn += 1
        return jax.random.fold_in(self.key, self.drawn - 1)


@dataclass(frozen=True, eq=False)
class Net:
    """A network as data and functions: parameters are plain nested dicts with string keys."""

    config: Any
    init: Callable[..., Params]  # key -> params
    apply: Callable[..., Any]  # (params, *args, method="__call__", read=None, **kw) -> output
    abstract: Callable[[], Params]  # () -> the same tree of ShapeDtypeStructs, nothing allocated


def functional(build: Callable[[nnx.Rngs], nnx.Module], config: Any = None) -> Net:
    """The pure functions of the module that `build` makes; `config` is kept for those who describe it."""
    graph, abstract_state = nnx.split(nnx.eval_shape(lambda: build(Keys(jax.random.key(0)))))
    flat_paths = [path for path, _ in nnx.to_flat_state(abstract_state)]

    def init(key: jax.Array) -> Params:
        return _to_dict(nnx.to_pure_dict(nnx.state(build(Keys(key)))))

    # Compiled by itself outside of jax.jit; inside, a network is traced and lowered once for all its calls.
    # `read` (path, weight) is what a layer sees of a weight that it reads (parallel.reading).
    @partial(jax.jit, static_argnames=("method", "read"))
    def apply(params: Params, *args: Any, method: str = "__call__", read: Read | None = None, **kwargs: Any) -> Any:
        leaves = [(path, _param(_at(params, path), path, read)) for path in flat_paths]
        module = nnx.merge(graph, nnx.from_flat_state(leaves))
        return getattr(module, method)(*args, **kwargs)

    def abstract() -> Params:
        return _to_dict(nnx.to_pure_dict(abstract_state))

    return Net(config, init, apply, abstract)


class _Read(nnx.Param):
    """A weight that its layer sees as `read` (weight) says."""

    def get_value(self, **index: Any) -> Any:
        """The weight, wherever Flax or a layer asks for it."""
        return self.get_metadata("read")(super().get_value(**index))


def _param(value: jax.Array, path: tuple[Any, ...], read: Read | None) -> nnx.Param:
    return nnx.Param(value) if read is None else _Read(value, read=partial(read, "/".join(map(str, path))))


def _to_dict(tree: Any) -> Any:
    return {str(k): _to_dict(v) for k, v in tree.items()} if isinstance(tree, dict) else tree


def _at(tree: Params, path: tuple[Any, ...]) -> Any:
    for depth, key in enumerate(path):
        try:
            tree = tree[str(key)]
        except KeyError:
            where = "/".join(map(str, path))
            raise KeyError(
                f"parameter {where} is missing: nothing named {key!r} under "
                f"{'/'.join(map(str, path[:depth])) or 'the root'}; these weights belong to another network"
            ) from None
    return tree
