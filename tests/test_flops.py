"""Operations are counted on a CPU, whatever else computes here."""

import jax
import jax.numpy as jnp
import pytest

from lcm_jax.flops import flops
from lcm_jax.models import attention


def test_operations_of_a_product():
    a, b = jnp.ones((3, 5)), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert flops(lambda a, b: a @ b, a, b) == 2 * 3 * 5 * 7


def test_a_loop_counts_as_often_as_it_turns():
    a, b = jax.ShapeDtypeStruct((6, 3, 5), jnp.float32), jnp.ones((5, 7))

    def nested(a):
        inner = lambda x: jax.lax.map(lambda row: row @ b, jnp.stack([x, x]))
        return jax.lax.map(jax.checkpoint(inner), a)

    one = 2 * 3 * 5 * 7
    assert flops(nested, a) == pytest.approx(12 * one, rel=0.01)  # and the loops' counters
    assert flops(lambda a: jax.lax.map(lambda row: row @ b, a), a) == pytest.approx(6 * one, rel=0.01)


def test_attention_of_many_pixels_counts_all_of_them_on_both_ways():
    n, d = 2048, 16
    q = jax.ShapeDtypeStruct((1, n, d), jnp.bfloat16)
    attend = lambda q: attention.attend(q, q, q, 2).astype(jnp.float32).sum()
    assert n * n >= attention.TOO_MANY  # it goes in turns
    assert flops(attend, q) == pytest.approx(2 * 2 * n * n * d, rel=0.5)  # products, and exp, sums, divisions
    assert flops(attend, q) > 2 * 2 * n * n * d
    assert flops(jax.grad(attend), q) > 2 * 2 * 3 * n * n * d


def test_counting_beside_a_gpu_asks_for_no_kernel_of_the_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(Exception, match="(?i)cudnn"):  # what would be asked for while training
        monkeypatch.setattr(attention, "get_backend", lambda: type("Gpu", (), {"platform_version": "cuda 13"}))
        q = jax.ShapeDtypeStruct((1, 64, 16), jnp.bfloat16)
        jax.jit(lambda q: attention.attend(q, q, q, 2)).lower(q)
    assert flops(lambda q: attention.attend(q, q, q, 2), q) > 2 * 2 * 64 * 64 * 16
