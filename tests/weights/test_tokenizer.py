"""Captions become ids of one length; what is cut is said."""

import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from lcm_jax.weights.fetch import MINILM, fetch
from lcm_jax.weights.tokenizer import CaptionTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer(fetch(MINILM) / "tokenizer.json")


def test_known_ids_padding_and_mask(tokenizer):
    ids, mask = tokenizer.encode(["Hello, world", ""], 8)
    # BERT uncased: [CLS] hello , world [SEP]
    np.testing.assert_array_equal(ids, [[101, 7592, 1010, 2088, 102, 0, 0, 0], [101, 102, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(mask.sum(1), [5, 2])
    assert ids.dtype == np.int32 and mask.dtype == bool


def test_the_length_is_free_of_the_files_own(tokenizer):
    ids, mask = tokenizer.encode(["word " * 300], 400)
    assert ids.shape == (1, 400) and mask.sum() == 302


def test_cut_captions_are_counted_and_named(tokenizer):
    with pytest.warns(UserWarning, match="1 of 2 captions exceed 5 tokens and were cut: 'a b c d e f'"):
        ids, mask = tokenizer.encode(["short", "a b c d e f"], 5)
    assert ids[1, -1] == 102 and mask[1].all()  # the closing token stays


def test_a_caption_that_just_fits_is_silent(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(["a b c"], 5)


def test_no_captions_at_all(tokenizer):
    assert tokenizer.encode([], 5)[0].shape == (0, 5)


def test_a_missing_file_and_a_missing_padding_token_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        CaptionTokenizer(tmp_path / "tokenizer.json")
    Tokenizer(WordLevel({"a": 0}, "a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"has no token '\[PAD\]' to pad with"):
        CaptionTokenizer(tmp_path / "tokenizer.json")
