"""Attention by parts is attention: the same values and gradients, less memory, only where it pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.models import attention
from lcm_jax.models.attention_blocks import BLOCK, block_of, by_head


def given(n, m, heads=2, width=8, batch=3):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.standard_normal((batch, x, heads, width)), jnp.float32) for x in (n, m, m, n)]


@pytest.mark.parametrize("n, m", [(512, 768), (7, 521)])
def test_values_and_gradients_are_those_of_attention_in_one_piece(n, m):
    q, k, v, by_out = given(n, m)

    def both(attend):
        out, gradient = jax.vjp(attend, 3 * q, k, v)
        return out, *gradient(by_out)

    for got, wanted in zip(jax.jit(both, static_argnums=0)(by_head), both(attention.normalised_late), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-5 * float(jnp.abs(wanted).max()))


def test_large_logits_do_not_overflow():
    q, k, v, _ = given(4, 6)
    out, gradient = jax.vjp(by_head, 1e4 * q, k, v)
    assert jnp.isfinite(out).all() and all(jnp.isfinite(x).all() for x in gradient(out))


def test_what_is_quadratic_is_never_whole():
    shapes = [jax.ShapeDtypeStruct((2, 2048, 2, 8), jnp.float32)] * 3

    def held(attend):
        compiled = jax.jit(jax.grad(lambda *a: attend(*a).sum(), (0, 1, 2))).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = 2 * 2 * 2048 * 2048 * 4
    assert held(by_head) < whole / 4 < whole <= held(attention.normalised_late)


def test_blocks_divide_and_are_not_tiny():
    assert [block_of(n) for n in (1024, 4096, 77, 300, 1, 521)] == [BLOCK, BLOCK, 77, 150, 1, 521]


def test_one_processor_with_many_pixels_takes_it_apart(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "by_head", lambda *a: taken.append(a) or by_head(*a))
    x = jnp.ones((1, 1024, 8))
    attention.attend(x, x, x, 2)
    assert not taken  # eight devices here: the batch may be spread over them
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    attention.attend(x, x[:, :256], x[:, :256], 2)
    assert not taken
    attention.attend(x, x, x, 2)
    assert len(taken) == 1


def test_in_half_precision_many_pixels_look_in_turn(monkeypatch):
    rng = np.random.default_rng(1)
    x, y = (jnp.asarray(rng.standard_normal((2, 64, 16)), jnp.bfloat16) for _ in range(2))

    def both():
        seen = jax.make_jaxpr(lambda q: attention.attend(q, y, y, 2))(x)
        out, gradient = jax.vjp(lambda q, k, v: attention.attend(q, k, v, 2), x, y, y)
        return "scan" in str(seen), [out, *gradient(out)]

    whole, wanted = both()
    monkeypatch.setattr(attention, "TURN", 16)
    for many, parted in ((64 * 64 + 1, False), (64 * 64, True)):
        monkeypatch.setattr(attention, "TOO_MANY", many)
        found, got = both()
        assert not whole and found is parted
        for a, b in zip(got, wanted, strict=True):  # bfloat16 rounds the sums of parts
            np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=0.02 * float(jnp.abs(b).max()))
    monkeypatch.setattr(attention, "TURN", 48)  # does not divide
    assert not both()[0]
