import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax import captions
from lcm_jax.models.spec import TextSpec


class Words:
    """A tokenizer of one id a word."""

    pad_id = 0

    def encode(self, texts, length):
        ids, mask = np.zeros((len(texts), length), np.int32), np.zeros((len(texts), length), bool)
        for row, text in enumerate(texts):
            words = [len(word) for word in text.split()][:length]
            ids[row, : len(words)], mask[row, : len(words)] = words, True
        return ids, mask


@pytest.fixture
def encoder(monkeypatch):
    """MiniLM with a small stand-in for its network, counting the shapes it is called with."""
    made = captions.MiniLM(5)
    shapes = []

    def states(net, params, ids, mask):
        shapes.append(ids.shape)
        return jnp.where(mask, ids, 0)[..., None].astype(jnp.float32)

    monkeypatch.setattr(captions, "text_states", states)
    monkeypatch.setitem(vars(made), "_tokenizer", Words())
    monkeypatch.setitem(vars(made), "params", {})
    return made, shapes


def test_one_compilation_serves_all_and_every_caption_has_its_row(encoder):
    made, shapes = encoder
    encode = lambda texts: captions.encode(made, texts)["context"]  # noqa: E731
    texts = ["a " * (i % 4) + "x" * (1 + i % 3) for i in range(2 * captions.BATCH + 3)]
    states = encode(texts)
    assert states.shape == (len(texts), 5, 1) and shapes == [(captions.BATCH, 5)]
    for text, row in zip(texts, states, strict=True):
        np.testing.assert_array_equal(row[: len(text.split()), 0], [len(word) for word in text.split()])
    assert not encode([""]).any()
    assert made.tokens(["ab c"]).tolist() == [[2, 1, 0, 0, 0]]


def test_the_identity_names_weights_and_length(encoder):
    assert encoder[0].identity == {"name": "minilm", "wheel_sha256": captions.MINILM.sha256, "length": 5}


def test_an_unknown_encoder_lists_the_known():
    with pytest.raises(ValueError, match="unknown caption encoder 'bert'; choose one of minilm"):
        captions.caption_encoder(TextSpec("bert"))
    assert captions.caption_encoder(TextSpec(length=7)).identity["length"] == 7
