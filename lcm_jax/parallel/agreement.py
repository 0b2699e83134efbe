"""What several processes must agree on before each goes on: a wish to stop, whether all succeeded."""

from collections import deque
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


class Wish:
    """One process's wish, heard by all at the same call: wish(mine) says whether any had it `late` calls ago.

    All processes must call it equally often. No call waits for the device, as long as what was dispatched `late` calls
    ago is done. Alone, a process is heard at once.
    """

    def __init__(self, late: int):
        self._late = late
        self._asked: deque[jax.Array] = deque()
        each = NamedSharding(Mesh(np.array(jax.devices()), ("all",)), PartitionSpec("all"))
        own = lambda mine: np.full(jax.local_device_count(), mine)
        self._said = {mine: jax.make_array_from_process_local_data(each, own(mine)) for mine in (False, True)}
        self._any = jax.jit(lambda wishes: wishes.any(), out_shardings=each.update(spec=PartitionSpec()))

    def __call__(self, mine: bool) -> bool:
        if jax.process_count() == 1:
            return mine
        self._asked.append(self._any(self._said[mine]))
        return len(self._asked) > self._late and bool(self._asked.popleft())


def on_all(mine: bool) -> bool:
    """Whether every process says yes; all must call it."""
    return mine if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(mine)).all())


def the_same(mine: Any) -> bool:
    """Whether every process holds the same number, below 2^32; all must call it."""
    return jax.process_count() == 1 or len(np.unique(multihost_utils.process_allgather(np.uint32(mine)))) == 1
