"""Each normalisation against its definition, and which of them learn a scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcm_jax.models.norms import NORMS, norm

SIDE, CHANNELS = 4, 8
AXES = {"layer": (1, 2, 3), "instance": (1, 2)}


@pytest.fixture
def image():
    return 3 + 2 * jax.random.normal(jax.random.key(0), (2, SIDE, SIDE, CHANNELS))


def expected(name, x):
    """By the book, in float64, before scale and bias."""
    x, span = np.asarray(x, np.float64), name.removeprefix("ns_")
    if span == "rms":
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-5)
    if span == "group":  # 8 channels: two groups of 4
        x = x.reshape(2, SIDE, SIDE, 2, 4)
        axes = (1, 2, 4)
    else:
        axes = AXES[span]
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    return x.reshape(2, SIDE, SIDE, CHANNELS)


@pytest.mark.parametrize("name", NORMS)
def test_it_normalises_what_its_name_says(name, image):
    np.testing.assert_allclose(norm(name, SIDE, CHANNELS)(image), expected(name, image), atol=2e-5)


@pytest.mark.parametrize("name", NORMS)
def test_non_scaling_ones_have_no_scale_and_shift_by_their_bias(name, image):
    part = norm(name, SIDE, CHANNELS)
    names = set(nnx.to_pure_dict(nnx.state(part, nnx.Param)))
    assert names == {"bias"} if name.startswith("ns_") else names == ({"scale"} if name == "rms" else {"scale", "bias"})
    shape = (SIDE, SIDE, CHANNELS) if name.endswith("layer") else (CHANNELS,)
    draw = jax.random.normal(jax.random.key(1), shape)
    want = expected(name, image)
    if "scale" in names:
        part.scale[...], want = draw, want * np.asarray(draw)
    if "bias" in names:
        part.bias[...], want = draw + 1, want + np.asarray(draw) + 1
    np.testing.assert_allclose(part(image), want, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_half_precision_goes_in_and_out_with_statistics_in_float32(name, image):
    out = norm(name, SIDE, CHANNELS)(image.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out, expected(name, image.astype(jnp.bfloat16).astype(jnp.float32)), atol=0.02)


def test_an_unknown_norm_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="unknown norm 'batch'; choose one of group, layer, instance, rms, ns_group"):
        norm("batch", SIDE, CHANNELS)
