"""Feature extraction in fixed batches, the cache of it, and the blurred control."""

import ml_dtypes
import numpy as np
import pytest

from lcm_jax.evaluate.controls import blur
from lcm_jax.evaluate.features import FeatureNet, cached, extract, fingerprint


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, 6, 6, 3), dtype=np.uint8)


def counting(calls, scale=1.0):
    def apply(pixels):
        calls.append(pixels.shape)
        return pixels.mean((1, 2)) * scale

    return FeatureNet("means", f"hash{scale}", apply)


def test_batches_are_of_one_size_and_rows_keep_their_order(images):
    calls = []
    features = extract(counting(calls), images, batch=3)
    assert calls == [(3, 6, 6, 3)] * 3
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, images.mean((1, 2)), rtol=1e-6)


def test_features_are_kept_for_the_same_pixels_and_the_same_network(images, tmp_path):
    calls = []
    first = cached(counting(calls), images, tmp_path)
    np.testing.assert_array_equal(cached(counting(calls), images, tmp_path), first)
    assert len(calls) == 1
    cached(counting(calls, 2.0), images, tmp_path)
    cached(counting(calls), images[::-1], tmp_path)
    assert len(calls) == 3


def test_a_damaged_cache_is_made_anew(images, tmp_path):
    calls = []
    first = cached(counting(calls), images, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:40])
    np.testing.assert_array_equal(cached(counting(calls), images, tmp_path), first)
    assert len(calls) == 2


def test_what_is_no_feature_is_an_error(images):
    with pytest.raises(ValueError, match="no images"):
        extract(counting([]), images[:0])
    with pytest.raises(ValueError, match="nan or inf"):
        extract(counting([], np.nan), images)


def test_fingerprints_see_values_shape_and_type():
    x = np.arange(6, dtype=np.uint8)
    others = [x.reshape(2, 3), x.astype(np.int8), x[::-1], "x", np.append(x, x)]
    assert len({fingerprint(x), *map(fingerprint, others)}) == 6
    assert fingerprint(x, "a") != fingerprint("a", x)
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    assert fingerprint(x[::-1]) == fingerprint(x[::-1].copy())
    half = x.astype(ml_dtypes.bfloat16)
    assert fingerprint(half) == fingerprint(half.copy()) != fingerprint(half.view(np.uint16))


def test_the_blur_is_a_gaussian():
    image = np.zeros((1, 21, 21, 3), np.uint8)
    image[0, 10, 10] = 255
    got = blur(image, 1.0)[0, :, :, 0].astype(float)
    grid = np.arange(21) - 10
    want = 255 * np.exp(-0.5 * (grid[:, None] ** 2 + grid[None] ** 2)) / (2 * np.pi)
    np.testing.assert_allclose(got, want, atol=0.6)


def test_the_blur_leaves_a_constant_alone_up_to_the_edges():
    flat = np.full((2, 5, 4, 3), 200, np.uint8)
    np.testing.assert_array_equal(blur(flat), flat)
    with pytest.raises(ValueError, match="sigma above 0"):
        blur(flat, 0.0)
