"""The devices of this host that draw: the weights on each, every call's pictures shared out among them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.transfer import batch_sharding, replicate


class Drawers:
    """All accelerators of this host, or its processor; `devices` chooses others.

    Hosts do not wait for each other: what one draws concerns no other.
    """

    def __init__(self, params: Any, devices: Sequence[jax.Device] | None = None):
        here = jax.local_devices()
        self._mesh = make_mesh(devices=devices or (here[:1] if here[0].platform == "cpu" else here))
        self.count, self._rows = self._mesh.size, batch_sharding(self._mesh)
        self.params = self.with_all(params)

    def with_all(self, tree: Any) -> Any:
        """A copy of weights on every device."""
        return replicate(tree, self._mesh)

    def size(self, each: int, total: int) -> int:
        """Pictures a call, at least one a device: `each`, or fewer where there are not as many in `total`."""
        return self.count * max(1, min(each, -(-total // self.count)))

    def even_size(self, each: int, total: int) -> int:
        """Pictures a call: at most `each` a device, as many in every call that `total` takes."""
        calls = -(-total // (self.count * each))
        return self.count * -(-total // (self.count * calls))

    def map(self, draw: Callable[..., jax.Array], rows: Sequence[Any], size: int, done: Callable[[int], Any]) -> Any:
        """draw(*rows) of `size` rows at a time, together; the last row fills up, so that one compilation serves all.

        `rows` are arrays [n, ...]; done(count) is told of every call's.
        """
        total, drawn = len(rows[0]), []
        for start in range(0, total, size):
            index = np.minimum(np.arange(start, start + size), total - 1)
            some = draw(*(jax.device_put(each[index], self._rows) for each in rows))
            drawn.append(np.asarray(some)[: total - start])
            done(len(drawn[-1]))
        return np.concatenate(drawn)
