"""The feature network against the classes its weights were trained for, and against plain convolutions."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from lcm_jax.models.layers import FrozenBatchNorm
from lcm_jax.models.vision import UNUSED_KEYS, Depthwise, VisionConfig, mobilenet_v2
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.fetch import MOBILENET, fetch
from lcm_jax.weights.torch_pickle import read_torch

SMALL = VisionConfig(size=32, stem=4, stages=((1, 4, 1, 1), (6, 6, 2, 2)), width=10, classes=3)


@pytest.fixture(scope="module")
def published():
    (path,) = fetch(MOBILENET).iterdir()
    net = mobilenet_v2()
    return net, from_torch(read_torch(path), net.abstract(), ignore=UNUSED_KEYS)


@pytest.fixture(scope="module")
def portrait():
    """Rear Admiral Grace Hopper in uniform, the sample photograph that matplotlib brings along."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photo = np.asarray(Image.open(path).convert("RGB").crop((0, 0, 512, 512)), np.float32)
    return jnp.asarray(photo / 127.5 - 1)[None]


def test_a_photograph_is_recognised_and_its_features_feed_the_classifier(published, portrait):
    net, params = published
    both = jax.jit(lambda p, x: (net.apply(p, x), net.apply(p, x, method="logits")))
    features, logits = both(params, portrait)
    assert logits.shape == (1, 1000)
    assert int(logits.argmax()) == 652  # military uniform
    assert features.shape == (1, 1280) and float(features.min()) >= 0 and float(features.max()) > 0.5
    last = params["classifier"]["1"]
    np.testing.assert_allclose(features @ last["kernel"] + last["bias"][None], logits, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def small():
    """A small network's features of images, jitted."""
    net, rng = mobilenet_v2(SMALL), np.random.default_rng(0)

    def draw(leaf):
        return rng.uniform(-0.7, 0.7, leaf.shape).astype(np.float32)

    def positive(path, leaf):
        return np.abs(leaf) + 0.1 if path[-1].key == "var" else leaf

    params = jax.tree_util.tree_map_with_path(positive, jax.tree.map(draw, net.abstract()))
    return jax.jit(lambda image: net.apply(params, image))


def test_any_shape_and_out_of_range_pixels_are_taken(small):
    image = np.random.default_rng(0).uniform(-3, 3, (2, 20, 28, 3)).astype(np.float32)
    assert small(image).shape == (2, 10)
    np.testing.assert_array_equal(small(image), small(image.clip(-1, 1)))


def test_a_smooth_image_has_the_same_features_at_any_size(small):
    def ramp(n):
        return np.tile((np.arange(n, dtype=np.float32)[:, None] + 0.5) / n * 2 - 1, (1, n, 1, 3))

    same, smaller = small(ramp(32)), small(ramp(64))
    assert float(jnp.abs(same - smaller).max()) < 0.02 * float(jnp.abs(same).max())


def test_a_small_image_is_not_enlarged():
    """A network that would shrink to its own size gives it the same features as one that would shrink to more."""
    image = jax.random.uniform(jax.random.key(0), (1, 24, 24, 3), minval=-1)
    nets = [mobilenet_v2(replace(SMALL, size=side)) for side in (24, 32)]
    params = nets[0].init(jax.random.key(1))
    features = [np.asarray(net.apply(params, image)) for net in nets]
    assert np.abs(features[0]).max() > 0
    np.testing.assert_array_equal(*features)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height, width", [(6, 6), (7, 4)])
def test_the_nine_taps_are_a_grouped_convolution(stride, height, width):
    part = Depthwise(5, stride, nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (2, height, width, 5))
    want = jax.lax.conv_general_dilated(
        x,
        part.kernel[...],
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=5,
    )
    np.testing.assert_allclose(part(x), want, atol=1e-5)


def test_batch_norm_uses_what_is_stored():
    norm = FrozenBatchNorm(2)
    norm.mean[...], norm.var[...] = jnp.array([1.0, -2.0]), jnp.array([4.0, 0.25])
    norm.scale[...], norm.bias[...] = jnp.array([2.0, 3.0]), jnp.array([0.5, -1.0])
    out = norm(jnp.full((1, 1, 1, 2), 5.0))
    np.testing.assert_allclose(out[0, 0, 0], [(5 - 1) / 2 * 2 + 0.5, (5 + 2) / 0.5 * 3 - 1], rtol=1e-4)
