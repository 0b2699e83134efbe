"""The KL autoencoder against diffusers, and its own promises."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.presets import AUTOENCODERS
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "diffusers.npz")
SIDE = {"moments": "encoder", "image": "decoder"}
PUBLISHED = json.loads((GOLDEN / "published.json").read_text())


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def run(name, dtype):
    net, inputs = autoencoder(replace(cases.AUTOENCODERS[name][0], dtype=dtype)), cases.autoencoder_inputs(name)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), net.abstract())
    names = {k: v.shape for k, v in to_torch(jax.tree.map(lambda x: np.empty(x.shape), abstract)).items()}
    params = from_torch(cases.fill(names), abstract)
    image, z = (jnp.asarray(inputs[k], dtype) for k in ("image", "z"))
    call = jax.jit(net.apply, static_argnames="method")
    return {"moments": call(params, image, method="encode"), "image": call(params, z, method="decode")}


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float64", 1e-12)])
def test_stored_answers_of_diffusers(dtype, bound, agree):
    with jax.enable_x64(dtype == "float64"):
        for what, value in run("kl", dtype).items():
            agree(f"VAE, {SIDE[what]}, {dtype}", relative(value, STORED[f"autoencoder/kl/{what}"]), bound)


def test_diffusers_itself(agree):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import torch
    from golden import reference

    theirs = reference.autoencoder_outputs("kl", torch.float32)
    for what, value in run("kl", "float32").items():
        agree(f"VAE, {SIDE[what]}, float32", relative(value, theirs[what]), 1e-5)


def test_the_preset_has_the_published_parameters():
    flat = flatten(autoencoder(AUTOENCODERS["sd"]).abstract())
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    shapes = {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}
    assert sum(int(np.prod(s)) for s in shapes.values()) == PUBLISHED["sd"]["parameters"]
    assert len(shapes) == len(flat) == PUBLISHED["sd"]["tensors"]
    assert cases.digest(shapes) == PUBLISHED["sd"]["sha256"]


@pytest.mark.parametrize("name, factor", [("tiny", 8), ("emoji", 8), ("sd", 8), ("sdxl", 8)])
def test_the_factor_of_a_preset_is_the_one_it_applies(name, factor):
    cfg = AUTOENCODERS[name]
    net = autoencoder(cfg)
    image = jax.ShapeDtypeStruct((1, 64, 48, 3), jnp.float32)
    moments = jax.eval_shape(lambda p, x: net.apply(p, x, method="encode"), net.abstract(), image)
    z = jax.ShapeDtypeStruct((1, 64 // factor, 48 // factor, cfg.latent_channels), jnp.float32)
    back = jax.eval_shape(lambda p, x: net.apply(p, x, method="decode"), net.abstract(), z)
    assert cfg.factor == factor
    assert moments.shape == (*z.shape[:3], 2 * cfg.latent_channels)
    assert back.shape == image.shape


def test_pixels_fold_into_patches_where_they_stand():
    """With folding, a pixel far from a latent cell's patch and its neighbours leaves that cell alone."""
    cfg = AutoencoderConfig((8,), 1, latent_channels=2, patch=4, norm_groups=4)
    net = autoencoder(cfg)
    params = net.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3))
    to_patches = lambda x: np.asarray(x).reshape(1, 4, 4, 4, 4, 3).swapaxes(2, 3).reshape(1, 4, 4, 48)
    kernel = params["encoder"]["conv_in"]["kernel"]
    seen = jax.make_jaxpr(lambda p, x: net.apply(p, x, method="encode"))(params, image)
    assert kernel.shape == (3, 3, 48, 8) and "f32[1,4,4,48]" in str(seen)

    # A decoder that passes its channels through paints each patch at its cell.
    painted = to_patches(net.apply(params, jnp.ones((1, 4, 4, 2)), method="decode"))
    bias = params["decoder"]["conv_out"]["bias"]
    params["decoder"]["conv_out"]["kernel"] *= 0
    params["decoder"]["conv_out"]["bias"] = jnp.arange(48.0).reshape(bias.shape)
    painted = to_patches(net.apply(params, jnp.ones((1, 4, 4, 2)), method="decode"))
    np.testing.assert_array_equal(painted, np.broadcast_to(np.arange(48.0), (1, 4, 4, 48)))


def test_log_variances_are_bounded():
    net = autoencoder(AUTOENCODERS["tiny"])
    params = net.init(jax.random.key(0))
    params["quant_conv"]["bias"] += 1e4
    moments = net.apply(params, jnp.zeros((1, 16, 16, 3)), method="encode")
    mean, logvar = jnp.split(moments, 2, axis=-1)
    assert mean.min() > 1e3
    np.testing.assert_array_equal(logvar, 20.0)


def test_half_precision_is_close():
    cfg = AUTOENCODERS["tiny"]
    params = autoencoder(cfg).init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 16, 16, 3), minval=-1)
    exact = autoencoder(cfg).apply(params, image, method="encode")
    half = autoencoder(replace(cfg, dtype="bfloat16")).apply(params, image, method="encode")
    assert half.dtype == jnp.float32 and 0 < relative(half, np.asarray(exact)) < 0.05


def test_an_image_that_does_not_fit_is_refused_with_the_factor():
    net = autoencoder(AUTOENCODERS["tiny"])
    with pytest.raises(ValueError, match="image 20 x 16 is not divisible by 8"):
        net.apply(net.init(jax.random.key(0)), jnp.zeros((1, 20, 16, 3)), method="encode")
