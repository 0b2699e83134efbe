"""Weight averages for sampling: how each of a run's follows the weights, and what it is called."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lcm_jax.typing import Params

Decay = Callable[[Float[Array, ""]], Any]  # of the average, at the number of steps made before
Numbers = float | int | Sequence[float | int]
POWER = "power"
WIDEST = 1 / np.sqrt(12)  # standard deviation of a profile that weighs every step alike


def averages(ema_decay: Numbers | None = 0.9999, ema_power: Numbers | None = None) -> dict[str, Decay]:
    """Name -> decay of each average: constant ones, then those of a power function; the first is the default.

    `ema_power` are widths sigma_rel of the profile as a share of the training (arXiv 2312.02696, section 3.1), such as
    0.05 and 0.1. Raises ValueError for numbers that are no decay or width, for one twice, and for none.
    """
    found: dict[str, Decay] = {}
    for given, name, make in ((ema_decay, "ema_decay", constant), (ema_power, "ema_power", power)):
        for number in () if given is None else (given,) if isinstance(given, Real) else given:
            decay = make(number)
            if (key := called(name, number)) in found:
                raise ValueError(f"config.average.{name} has {number} twice: one average of each is enough")
            found[key] = decay
    if not found:
        raise ValueError("config.average names no average: give ema_decay, such as 0.9999, or ema_power, such as 0.1")
    return found


def called(name: str, number: float | int) -> str:
    """What an average is called: its decay such as "0.9999", or "power0.1" by its width."""
    return f"{POWER}{float(number)}" if name == "ema_power" else str(float(number))


def constant(decay: float | int) -> Decay:
    """The decay, from below: young averages follow closely, so that a short run samples from no initial noise."""
    if not 0 <= decay < 1:
        raise ValueError(f"config.average.ema_decay is {decay}: give at least 0 and below 1, such as 0.9999")
    return lambda count: jnp.minimum(decay, (1.0 + count) / (10.0 + count))


def power(width: float | int) -> Decay:
    """(1 - 1 / t)^(gamma + 1) at step t: the average weighs step s as s^gamma (arXiv 2312.02696, section 3.1)."""
    gamma = exponent(width)
    return lambda count: jnp.exp((gamma + 1) * jnp.log1p(-1 / (1 + count)))


def exponent(width: float | int) -> float:
    """gamma, of which sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (arXiv 2312.02696, section 3.1)."""
    if not 0 < width <= WIDEST:
        raise ValueError(f"config.average.ema_power is {width}: give a width above 0, up to {WIDEST:.4f}, such as 0.1")
    return float(np.roots([1, 7, 16 - width**-2, 12 - width**-2]).real.max())


def several(names: Mapping[str, Any] | Sequence[str], make: Callable[[str], Params]) -> Any:
    """What a state holds as `ema`: the average itself, or of more than one a dict by name."""
    return make(next(iter(names))) if len(names) == 1 else {name: make(name) for name in names}


def part(names: Sequence[str], number: float | str | None = None) -> str:
    """Where an average stands in a state: "ema", or of more than one "ema/NAME"; None means the first.

    `number` is a decay, or "power0.1" as `called` has it. Raises ValueError with the names there are.
    """
    names = list(names)
    wanted = names[0] if number is None else spelt(str(number))
    if wanted not in names:
        raise ValueError(f"the run keeps no average {number!r}; choose one of {', '.join(names)}")
    return "ema" if len(names) == 1 else f"ema/{wanted}"


def spelt(name: str) -> str:
    """A name as `called` writes it: "0.9990" is "0.999"."""
    kind = "ema_power" if name.startswith(POWER) else "ema_decay"
    try:
        return called(kind, float(name.removeprefix(POWER)))
    except ValueError:
        return name
