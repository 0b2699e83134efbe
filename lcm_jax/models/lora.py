"""Low-rank adapters (LoRA) of a network's kernels, as functions of nested dicts.

W' = W + strength * alpha / rank * down @ up (LoRA, arXiv 2106.09685, section 4.1; LCM-LoRA, arXiv 2311.05556).
A tree of adapters is nested like the parameters, each adapted module holding {"down", "up"} in the kernel's own layout:

    Dense [in, out]           down [in, rank]          up [rank, out]
    Conv [kh, kw, in, out]    down [kh, kw, in, rank]  up [1, 1, rank, out]

so a convolution is followed by a 1x1 convolution, as peft and kohya define it. The tree holds what is trained and
nothing else; alpha, a number or {"path/of/module": number}, goes beside it. A student with adapters is
`net.apply(merge(base, lora, alpha), ...)`, its teacher `net.apply(base, ...)`: one frozen copy serves both.

What merging costs. Under jit with a gradient, the merged kernels live from the forward to the backward pass: one
further copy of every adapted kernel in the compute type (SD 1.5 with LCM_TARGETS: 0.86 G numbers, 1.7 GB in bfloat16),
besides one kernel's gradient at a time. Gradients, optimiser moments and averages have the size of the adapters. Adding
x @ down @ up to each module's output instead would need neither that copy nor the product that makes a kernel's
gradient (a third of the arithmetic of forward and backward), but another forward pass in every module.
In bfloat16 the sum is rounded to 8 bits, as the weights of any mixed-precision training are.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lcm_jax.typing import Params

Number = int | float | jax.Array
Alpha = Number | Mapping[str, Number]

# What LCM-LoRA adapts in a U-Net of Stable Diffusion: 67.3 M numbers at rank 64 for SD 1.5, 196.8 M for SDXL.
LCM_TARGETS = (
    r"/attn\d+/to_(q|k|v|out/0)$",
    r"/attentions/\d+/proj_(in|out)$",
    r"/ff/net/(0/proj|2)$",
    r"/(resnets/\d+/(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers/\d+/conv)$",
)
_SHOWN = 6  # names in an error before "and n more"


@dataclass(frozen=True)
class LoraConfig:
    """Which modules are adapted, and how; `targets` are searched in paths such as "mid_block/resnets/0/conv1".

    Raises ValueError for a rank below 1, an alpha that is not positive and a target that is no regular expression.
    """

    rank: int = 64
    alpha: int | float = 64
    targets: tuple[str, ...] = LCM_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}: give 1 or more")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"lora.alpha is {self.alpha}: give a positive number, such as the rank")
        for target in self.targets:
            try:
                re.compile(target)
            except re.error as error:
                raise ValueError(f"lora.targets has {target!r}, no regular expression ({error})") from None


def targeted(abstract_params: Params, config: LoraConfig) -> dict[str, Any]:
    """{"path/of/module": kernel} of the modules that `config` adapts; only what has a kernel can be.

    Raises ValueError for a target that matches none of them.
    """
    kernels = dict(_kernels(abstract_params))
    for target in config.targets:
        if not any(re.search(target, path) for path in kernels):
            raise ValueError(f"lora.targets has {target!r}, which matches no kernel: there are {_some(list(kernels))}")
    return {path: leaf for path, leaf in kernels.items() if any(re.search(t, path) for t in config.targets)}


def init(key: jax.Array, abstract_params: Params, config: LoraConfig) -> Params:
    """New adapters for the parameters described (arrays or ShapeDtypeStructs), in float32 or wider.

    down is uniform in +-1 / sqrt(fan in), as peft and kohya draw it; up is zero, so the network is its base at first.
    Raises ValueError as `targeted` does.
    """
    kernels = targeted(abstract_params, config)
    shapes = {path: (*kernel.shape[:-1], config.rank) for path, kernel in kernels.items()}
    wide = jnp.result_type(jnp.float32, *(kernel.dtype for kernel in kernels.values()))
    # One draw for all modules, kept from being repeated for each: it takes long to compile, and there are hundreds.
    numbers = jax.random.uniform(key, (sum(map(math.prod, shapes.values())),), wide, -1, 1)
    numbers, start, flat = jax.lax.optimization_barrier(numbers), 0, {}
    for path, kernel in kernels.items():
        shape, dtype = shapes[path], jnp.promote_types(kernel.dtype, jnp.float32)
        stop, fan_in = start + math.prod(shape), math.prod(shape[:-1])
        down = numbers[start:stop].reshape(shape) / math.sqrt(fan_in)
        up = jnp.zeros((*[1] * (len(shape) - 2), config.rank, kernel.shape[-1]), dtype)
        flat[path], start = {"down": down.astype(dtype), "up": up}, stop
    return _nested(flat)


def merge(params: Params, lora: Params, alpha: Alpha, strength: Number = 1.0) -> Params:
    """The parameters with each adapted kernel W replaced by W + strength * alpha / rank * down @ up.

    The sum is taken in float32 or wider and has W's type; all other leaves are shared with `params`.
    Raises ValueError for adapters of modules that `params` lacks or has in another shape, and for a lacking alpha.
    """
    return combine(params, [(lora, alpha, strength)])


def combine(params: Params, parts: Sequence[tuple[Params, Alpha, Number]]) -> Params:
    """The parameters with several (lora, alpha, strength) merged at once: W plus the sum of their deltas.

    A style at 0.8 and LCM at 1.0 is LCM-LoRA's own use (arXiv 2311.05556, section 3.2). Raises ValueError as `merge`.
    """
    adapters: dict[str, list[tuple[Params, Number]]] = {}
    for lora, alpha, strength in parts:
        for path, pair in _modules(lora):
            adapters.setdefault(path, []).append((pair, strength * _scale(path, pair, alpha)))
    kernels = dict(_kernels(params))
    _check(kernels, adapters)
    return _replaced(params, _nested({path: _sum(kernels[path], pairs) for path, pairs in adapters.items()}))


def _product(pair: Params, scale: Number) -> jax.Array:
    down, up = jnp.asarray(pair["down"]), jnp.asarray(pair["up"])
    wide = jnp.promote_types(jnp.promote_types(down.dtype, up.dtype), jnp.float32)
    flat = up.reshape(up.shape[-2:]).astype(wide)
    return scale * jnp.tensordot(down.astype(wide), flat, 1, precision="highest")


def _sum(kernel: Any, pairs: Sequence[tuple[Params, Number]]) -> Params:
    kernel, change = jnp.asarray(kernel), sum(_product(*pair) for pair in pairs)
    return {"kernel": (kernel + change).astype(kernel.dtype)}


def _scale(path: str, pair: Params, alpha: Alpha) -> Number:
    if isinstance(alpha, Mapping):
        if path not in alpha:
            raise ValueError(f"alpha lacks {path}: give one number for all modules, or one for each")
        alpha = alpha[path]
    return alpha / pair["down"].shape[-1]


def _check(kernels: Mapping[str, Any], adapters: Mapping[str, Sequence[tuple[Params, Number]]]) -> None:
    if absent := [path for path in adapters if path not in kernels]:
        raise ValueError(f"the network lacks {len(absent)} of {len(adapters)} adapted modules: {_some(absent)}")
    for path, pairs in adapters.items():
        *into, out = kernels[path].shape
        for pair, _ in pairs:
            down, up = (tuple(pair[part].shape) for part in ("down", "up"))
            if down[:-1] != tuple(into) or up != (*[1] * (len(into) - 1), down[-1], out):
                raise ValueError(f"{path} has a kernel {(*into, out)}, which down {down} and up {up} do not fit")


def _kernels(tree: Params, path: str = "") -> Iterator[tuple[str, Any]]:
    """("path/of/module", kernel) of all dense maps and convolutions."""
    for name, child in tree.items():
        if isinstance(child, Mapping):
            yield from _kernels(child, f"{path}/{name}" if path else name)
        elif name == "kernel" and len(child.shape) >= 2:
            yield path, child


def _modules(lora: Params, path: str = "") -> Iterator[tuple[str, Params]]:
    """("path/of/module", {"down", "up"}) of all adapters."""
    if lora.keys() == {"down", "up"} and not isinstance(lora["down"], Mapping):
        yield path, lora
        return
    for name, child in lora.items():
        where = f"{path}/{name}" if path else name
        if not isinstance(child, Mapping):
            raise ValueError(f"{where} is no part of an adapter: a module holds 'down' and 'up' and nothing else")
        yield from _modules(child, where)


def _nested(flat: Mapping[str, Params]) -> Params:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for name in path.split("/"):
            node = node.setdefault(name, {})
        node.update(value)
    return tree


def _replaced(tree: Params, changes: Params) -> Params:
    """`tree` with the leaves of `changes` in place of its own; dicts on the way are new, all else is shared."""
    new = dict(tree)
    for name, change in changes.items():
        new[name] = _replaced(tree[name], change) if isinstance(change, Mapping) else change
    return new


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
