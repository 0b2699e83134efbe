"""Operations are counted on a CPU, whatever else computes here."""

import jax
import jax.numpy as jnp
import pytest

from lcm_jax.flops import flops
from lcm_jax.models import attention


def test_operations_of_a_product():
    a, b = jnp.ones((3, 5)), jax.ShapeDtypeStruct((5, 7), jnp.float32)
    assert flops(lambda a, b: a @ b, a, b) == 2 * 3 * 5 * 7


def test_counting_beside_a_gpu_asks_for_no_kernel_of_the_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    with pytest.raises(Exception, match="(?i)cudnn"):  # what would be asked for while training
        monkeypatch.setattr(attention, "get_backend", lambda: type("Gpu", (), {"platform_version": "cuda 13"}))
        q = jax.ShapeDtypeStruct((1, 64, 16), jnp.bfloat16)
        jax.jit(lambda q: attention.attend(q, q, q, 2)).lower(q)
    assert flops(lambda q: attention.attend(q, q, q, 2), q) > 2 * 2 * 64 * 64 * 16
