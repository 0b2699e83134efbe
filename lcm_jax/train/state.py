"""What training carries from step to step."""

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """Everything a run needs to go on bit for bit; the teacher is not part of it.

    `target` (theta-) is None when the online weights serve as target; `ema` is for sampling only:
    an average, or of more than one a dict of them by name (train.averages).
    """

    step: Any  # int32 scalar: the only clock of schedules, keys and curricula
    params: Any
    target: Any
    ema: Any
    opt_state: Any
