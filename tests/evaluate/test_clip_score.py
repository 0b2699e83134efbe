"""The CLIP score of vectors whose angles are known, and what a distance may be called."""

import numpy as np
import pytest

from lcm_jax.evaluate.clip_score import clip_scores
from lcm_jax.evaluate.frechet_name import frechet_name, why


def test_known_angles():
    images = np.array([[1.0, 0], [3, 4], [0, 2], [-1, 0]], np.float32)
    texts = np.array([[7.0, 0], [4, 3], [5, 0], [2, 0]], np.float32)
    np.testing.assert_allclose(clip_scores(images, texts), [100, 96, 0, 0], atol=1e-5)


def test_no_direction_is_an_error():
    for bad in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="no direction for some pairs"):
            clip_scores(np.full((2, 3), bad), np.ones((2, 3)))


@pytest.mark.parametrize(
    "network, generated, real, name, reason",
    [
        ("Inception", 30_000, 10_000, "FID", "TensorFlow 1 bilinear"),
        ("Inception", 30_000, 9_999, "FD-Inception", "wants 10,000 images"),
        ("Inception", 160, 40_000, "FD-Inception", "wants 10,000 images"),
        ("MobileNetV2", 50_000, 50_000, "FD-MobileNetV2", "looks through Inception"),
    ],
)
def test_only_one_network_at_full_numbers_gives_fid(network, generated, real, name, reason):
    assert frechet_name(network, generated, real) == name
    assert reason in why(network, generated, real)
