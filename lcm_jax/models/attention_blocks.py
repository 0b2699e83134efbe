"""Attention by parts that fit a processor's cache: one head of one sample, a block of queries or keys at a time.

What is quadratic in the pixels is made anew for the gradient and never stands in memory whole (arXiv 2205.14135).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "b n h d"]
Given = Float[Array, "b m h d"]  # keys or values
BLOCK = 256  # queries or keys; with 1,024 of the other a block of float32 weights takes 1 MiB


@jax.custom_vjp
def by_head(q: Heads, k: Given, v: Given) -> Heads:
    """softmax(q k^T / sqrt(d)) v."""
    return _forward(q, k, v)[0]


def _forward(q: Heads, k: Given, v: Given) -> tuple[Heads, tuple[Array, ...]]:
    scale, block = q.shape[-1] ** -0.5, block_of(q.shape[1])

    def head(given: tuple[Array, ...]) -> tuple[Array, Array]:
        q, k, v = given

        def part(q: Array) -> tuple[Array, Array]:
            logits = q @ k.T
            largest = logits.max(-1)
            weights = jnp.exp(logits - largest[:, None])
            total = weights.sum(-1)
            return (weights @ v) / total[:, None], largest + jnp.log(total)

        out, log_total = jax.lax.map(part, (q * scale).reshape(-1, block, q.shape[-1]))
        return out.reshape(q.shape), log_total.reshape(-1)

    out, log_total = jax.lax.map(head, (_apart(q), _apart(k), _apart(v)))
    return _together(out, q.shape[2]), (q, k, v, out, log_total)


def _backward(kept: tuple[Array, ...], by_out: Heads) -> tuple[Heads, Given, Given]:
    q, k, v, out, log_total = kept
    heads, scale, block = q.shape[2], q.shape[-1] ** -0.5, block_of(k.shape[1])

    def head(given: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, k, v, out, log_total, by_out = given
        q = q * scale
        mean = (by_out * out).sum(-1)  # over a query's weights, of the gradient by each

        def part(by_q: Array, given: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            k, v = given
            weights = jnp.exp(k @ q.T - log_total[None])  # [keys, queries]
            by_logits = weights * (v @ by_out.T - mean[None])
            return by_q + by_logits.T @ k, (by_logits @ q, weights @ by_out)

        blocks = (k.reshape(-1, block, k.shape[-1]), v.reshape(-1, block, v.shape[-1]))
        by_q, (by_k, by_v) = jax.lax.scan(part, jnp.zeros_like(q), blocks)
        return by_q * scale, by_k.reshape(k.shape), by_v.reshape(v.shape)

    parts = (_apart(q), _apart(k), _apart(v), out, log_total, _apart(by_out))
    by_q, by_k, by_v = (_together(x, heads) for x in jax.lax.map(head, parts))
    return by_q, by_k, by_v


by_head.defvjp(_forward, _backward)


def block_of(number: int) -> int:
    """How many of them a block has: the most that divide them, up to BLOCK; all where that would be few."""
    most = max(size for size in range(1, min(BLOCK, number) + 1) if number % size == 0)
    return most if 4 * most >= min(BLOCK, number) else number


def _apart(x: Heads) -> Float[Array, "bh n d"]:
    return x.swapaxes(1, 2).reshape(-1, x.shape[1], x.shape[3])


def _together(x: Float[Array, "bh n d"], heads: int) -> Heads:
    return x.reshape(-1, heads, *x.shape[1:]).swapaxes(1, 2)
