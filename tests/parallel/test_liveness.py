"""What is alive at once, in programs small enough to count by hand."""

import jax
import jax.numpy as jnp

from lcm_jax.parallel.liveness import peak_bytes

X = jax.ShapeDtypeStruct((1024,), jnp.float32)
KB = 4096  # bytes of X


def peak(f, *arguments):
    return peak_bytes(jax.make_jaxpr(f)(*arguments), lambda aval: aval.size * aval.dtype.itemsize)


def test_a_chain_holds_two_links():
    assert peak(lambda x: jnp.sin(jnp.cos(jnp.tan(x))), X) == 2 * KB


def test_what_is_read_later_is_kept():
    def f(x):
        a = jnp.sin(x)
        b = jnp.cos(jnp.tan(jnp.exp(a)))
        return a * b

    assert peak(f, X) == 3 * KB


def test_views_cost_nothing_and_keep_what_they_show():
    assert peak(lambda x: jnp.sin(jnp.reshape(x, (32, 32))), X) == KB

    def f(x):
        view = jnp.sin(x).reshape(32, 32)
        return jnp.cos(jnp.tan(jnp.exp(x))) * view.reshape(-1)

    assert peak(f, X) == 3 * KB


def test_inner_functions_and_loops_count_while_they_run():
    inner = jax.jit(lambda x: jnp.sin(jnp.cos(jnp.tan(x))))
    assert peak(lambda x: inner(x), X) == 2 * KB
    stacked = lambda x: jax.lax.scan(lambda c, _: (jnp.tan(c), jnp.sin(jnp.cos(c))), x, length=3)  # noqa: E731
    assert peak(stacked, X) == (3 + 1 + 3) * KB  # three results, the carry, one turn


def test_recomputing_blocks_keeps_less():
    def depth(block):
        def f(x):
            for _ in range(8):
                x = block(x)
            return x.sum()

        return peak(jax.grad(f), X)

    block = lambda x: jnp.sin(jnp.cos(jnp.sin(jnp.cos(x))))  # noqa: E731
    assert depth(jax.checkpoint(block)) < 0.6 * depth(block)
