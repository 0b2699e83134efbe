"""How the noise of a minibatch is paired with its data: couple(z0, eps) -> (eps, metrics), reordered or not."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from optax.assignment import hungarian_algorithm

from lcm_jax.typing import Latent, Metrics

# Samples coupled exactly. On a CPU the auction took 10 times as long for 128 samples, 48 for 512, 59 for 1,024, where
# the exact search takes 0.2 s. On a GPU, which does the Hungarian algorithm's many small steps one by one, the auction
# was the faster at 32, 128 and 512 (benchmarks/transport.py, benchmarks/results).
EXACT_ON_CPU, EXACT_ELSEWHERE = 2048, 16
BIDS = 8  # between two looks at whether the auction is over


def independent(z0: Latent, eps: Latent) -> tuple[Latent, Metrics]:
    """Noise as it was drawn."""
    return eps, {}


@dataclass(frozen=True)
class OptimalTransport:
    """Noise reordered so that the summed squared distance to its data is least (arXiv 2502.01441).

    The batch is coupled in `parts` equal runs of neighbours: 1 couples all of it, over every device of a sharded
    run, the number of devices couples each device's own as the authors do. Up to `exact_up_to` samples a part (None:
    what is the faster here) the assignment is exact, above it the cost is within `tolerance` of the range of the
    products, a sample. Raises ValueError for a batch that does not divide; a cost that is not finite gives noise that
    is not.
    """

    parts: int = 1
    exact_up_to: int | None = None
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.parts < 1:
            raise ValueError(f"parts is {self.parts}: give in how many parts a batch is coupled, 1 or more")
        if self.tolerance <= 0:
            raise ValueError(f"tolerance is {self.tolerance}: give a positive share, such as 1e-3")

    def __call__(self, z0: Latent, eps: Latent) -> tuple[Latent, Metrics]:
        own = self.part_size(z0.shape[0])
        x, n = (v.reshape(self.parts, own, -1).astype(jnp.float32) for v in (z0, eps))
        # |x - n|^2 = |x|^2 - 2 <x, n> + |n|^2, and no order changes the squares' sum.
        product = jnp.einsum("pad,pbd->pab", x, n, precision="highest")
        finite = jnp.isfinite(product).all()
        order = jax.vmap(self.match)(jnp.where(finite, product, 0))
        coupled = jnp.take_along_axis(n, order[:, :, None], axis=1)
        before, after = (jnp.square(x - v).sum() for v in (n, coupled))
        coupled = jnp.where(finite, coupled, jnp.nan).reshape(eps.shape).astype(eps.dtype)
        return coupled, {"transport_gain/mean": 1 - after / before}

    def part_size(self, b: int) -> int:
        """Samples of each part of a batch of b; ValueError where they cannot be equal."""
        if b % self.parts:
            raise ValueError(f"a batch of {b} does not split into {self.parts} equal parts to couple: change either")
        return b // self.parts

    def match(self, product: Float[Array, "n n"]) -> Int[Array, " n"]:
        """The column of each row of one part, found by what is the faster where it runs."""

        def search(limit: int) -> Callable[[Float[Array, "n n"]], Int[Array, " n"]]:
            return exact if len(product) <= limit else lambda p: never_worse(auction(p, self.tolerance), p)

        if self.exact_up_to is not None:
            return search(self.exact_up_to)(product)
        return jax.lax.platform_dependent(product, cpu=search(EXACT_ON_CPU), default=search(EXACT_ELSEWHERE))


def exact(product: Float[Array, "n n"]) -> Int[Array, " n"]:
    """The column of each row that together have the largest sum (Hungarian algorithm)."""
    rows, columns = hungarian_algorithm(-product)
    return jnp.zeros(len(product), columns.dtype).at[rows].set(columns)


def auction(product: Float[Array, "n n"], tolerance: float) -> Int[Array, " n"]:
    """As `exact`, within n * tolerance * (max - min) of the largest sum (Bertsekas 1988, all rows bid at once).

    Bids rise by a least step, from a quarter of the range down to the tolerance; prices are kept between.
    """
    n = len(product)
    if n == 1:
        return jnp.zeros(1, jnp.int32)
    low, high = product.min(), product.max()
    span = jnp.where(high > low, high - low, 1)
    product = (product - low) / span
    # Prices reach about n; a step below their rounding would never raise them, and the bids never end.
    tolerance = max(tolerance, 2 * n * float(jnp.finfo(product.dtype).eps))
    phases = 1 + max(0, int(np.ceil(np.log(0.25 / tolerance) / np.log(4))))
    steps = jnp.asarray(np.geomspace(max(0.25, tolerance), tolerance, phases), product.dtype)
    rows = jnp.arange(n)

    def bid(state):
        prices, item, step = state
        free = item < 0
        worth = product - prices[None]
        wanted = worth.argmax(1)
        best = worth.max(1)
        second = jnp.where(wanted[:, None] == rows[None], -jnp.inf, worth).max(1)
        offer = jnp.where(free, prices[wanted] + best - second + step, -jnp.inf)
        offers = jnp.where(wanted[:, None] == rows[None], offer[:, None], -jnp.inf)
        highest, winner = offers.max(0), offers.argmax(0)
        sold = highest > -jnp.inf
        item = jnp.where(sold[item] & ~free, -1, item)  # outbid
        item = jnp.where(free & (winner[wanted] == rows), wanted, item)
        return jnp.where(sold, highest, prices), item, step

    def bids(state):  # a GPU is asked once whether all have an item, not after every bid; none bids who has one
        for _ in range(BIDS):
            state = bid(state)
        return state

    def phase(prices, step):
        start = (prices, jnp.full(n, -1), step)
        prices, item, _ = jax.lax.while_loop(lambda state: (state[1] < 0).any(), bids, start)
        return prices, item

    return jax.lax.scan(phase, jnp.zeros(n, product.dtype), steps)[1][-1]


def never_worse(order: Int[Array, " n"], product: Float[Array, "n n"]) -> Int[Array, " n"]:
    """`order`, or the order as it was where that has the larger sum (an approximation may fall below it)."""
    rows = jnp.arange(len(product), dtype=order.dtype)
    return jnp.where(product[rows, order].sum() >= jnp.trace(product), order, rows)
