"""The text encoder against the published figures of its weights, and its handling of padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.models.text import UNUSED_KEYS, TextConfig, pooled_sentence, text_encoder, text_states
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.fetch import MINILM, fetch
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.tokenizer import CaptionTokenizer

TINY = TextConfig(vocabulary=11, width=8, layers=2, heads=2, inner=16, positions=6)


@pytest.fixture(scope="module")
def tiny():
    """A small encoder's states of (ids, mask), jitted."""
    net, rng = text_encoder(TINY), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), net.abstract())
    return jax.jit(lambda ids, mask: text_states(net, params, ids, mask))


def test_the_published_similarities():
    folder, net = fetch(MINILM), text_encoder()
    file = SafetensorsFile(folder / "model.safetensors")
    params = from_torch(file, net.abstract(), ignore=UNUSED_KEYS)
    pairs = [
        ("That is a happy person", "That is a happy dog"),
        ("That is a happy person", "That is a very happy person"),
        ("That is a happy person", "Today is a sunny day"),
    ]
    ids, mask = CaptionTokenizer(folder / "tokenizer.json").encode([s for pair in pairs for s in pair], 12)
    ids, mask = jnp.asarray(ids), jnp.asarray(mask)
    embed = jax.jit(lambda p: pooled_sentence(text_states(net, p, ids, mask), mask))
    v = embed(params)
    # The model card's own figures.
    np.testing.assert_allclose((v[0::2] * v[1::2]).sum(-1), [0.695, 0.943, 0.257], atol=6e-4)


def test_padding_is_zero_and_changes_nothing(tiny):
    ids = jnp.array([[1, 2, 3, 0, 0, 0], [1, 4, 5, 6, 7, 3]])
    mask = jnp.array([[True] * 3 + [False] * 3, [True] * 6])
    states = tiny(ids, mask)
    assert states.shape == (2, 6, 8)
    assert (states[0, 3:] == 0).all() and (states[1] != 0).any(-1).all()
    alone = tiny(ids[:1, :3], mask[:1, :3])
    np.testing.assert_allclose(states[:1, :3], alone, atol=1e-5)
    other = tiny(ids.at[0, 3:].set(9), mask)
    np.testing.assert_array_equal(states, other)


def test_order_and_neighbours_matter(tiny):
    full = jnp.ones((1, 3), bool)
    a, b, c = (tiny(jnp.array([ids]), full) for ids in ([1, 2, 3], [2, 1, 3], [1, 4, 3]))
    assert jnp.abs(a[0, 2] - b[0, 2]).max() > 1e-3
    assert jnp.abs(a[0, 2] - c[0, 2]).max() > 1e-3


def test_pooling_is_the_normalised_mean_of_what_is_kept():
    states = jnp.array([[[3.0, 0.0], [0.0, 4.0], [100.0, 100.0]]])
    pooled = pooled_sentence(states, jnp.array([[True, True, False]]))
    np.testing.assert_allclose(pooled, [[0.6, 0.8]], rtol=1e-6)


def test_too_many_tokens_is_an_error(tiny):
    with pytest.raises(ValueError, match="7 tokens, but 6 positions: shorten max_length"):
        tiny(jnp.ones((1, 7), jnp.int32), jnp.ones((1, 7), bool))
