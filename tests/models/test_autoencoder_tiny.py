"""The tiny autoencoder against diffusers and its published weights, and what both kinds of autoencoder share."""

import io
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from golden import cases
from PIL import Image

from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.autoencoder_tiny import NO_SPREAD, TinyAutoencoderConfig, original_name
from lcm_jax.models.presets import AUTOENCODERS
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key
from lcm_jax.weights.safetensors_file import SafetensorsFile

DATA = Path(os.environ.get("LCM_JAX_TEST_DATA") or Path(__file__).parents[3] / "shared" / "data")
SMALL = TinyAutoencoderConfig(width=8, encoder_blocks=(1, 2, 1), decoder_blocks=(2, 0, 1))
KL = AutoencoderConfig((8, 16), 1, latent_channels=3, norm_groups=4)
SIDES = ("encoder", "decoder")


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def drawn(cfg):
    """PyTorch's names and random weights, and the same as our parameters in the config's precision."""
    stored = jnp.dtype("float64" if cfg.dtype == "float64" else "float32")
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, stored), autoencoder(cfg).abstract())
    names = to_torch(jax.tree.map(lambda leaf: np.empty(leaf.shape), abstract))
    tensors = cases.fill({key: value.shape for key, value in names.items()})
    return tensors, from_torch(tensors, abstract)


def inputs(cfg, sides=(4, 6)):
    """An image in [-1, 1], and a latent large enough to be squashed."""
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (2, *(cfg.factor * n for n in sides), 3))
    return image, 3 * rng.standard_normal((2, *sides, cfg.latent_channels))


def both(cfg, params, image, z):
    """Moments of the image, image of the latent."""
    call = jax.jit(autoencoder(cfg).apply, static_argnames="method")
    kind = "float64" if cfg.dtype == "float64" else "float32"
    return call(params, jnp.asarray(image, kind), method="encode"), call(params, jnp.asarray(z, kind), method="decode")


def their_answers(tensors, image, z, dtype, **sizes):
    """diffusers' latent of the image and image of the latent."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    kind = getattr(torch, dtype)
    net = diffusers.AutoencoderTiny(**sizes).to(kind).eval()
    net.load_state_dict({k: torch.tensor(v, dtype=kind) for k, v in tensors.items()})
    image, z = (torch.tensor(np.asarray(x), dtype=kind).permute(0, 3, 1, 2) for x in (image, z))
    with torch.no_grad():
        answers = net.encode(image).latents, net.decode(z).sample
    return [x.permute(0, 2, 3, 1).numpy() for x in answers]


@pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float64", 1e-9)])
def test_diffusers(dtype, bound, agree):
    cfg = replace(SMALL, dtype=dtype)
    with jax.enable_x64(dtype == "float64"):
        tensors, params = drawn(cfg)
        image, z = inputs(cfg)
        sizes = dict(encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3)
        sizes |= dict(num_encoder_blocks=(1, 2, 1), num_decoder_blocks=(2, 0, 1))
        latent, picture = their_answers(tensors, image, z, dtype, **sizes)
        moments, ours = both(cfg, params, image, z)
    assert moments.dtype == ours.dtype == dtype
    agree(f"TAESD, encoder, {dtype}", relative(moments[..., :4], latent), bound)
    agree(f"TAESD, decoder, {dtype}", relative(ours, picture), bound)


def torch_shapes(cfg):
    """Names and shapes as PyTorch has them: the last two dims of a kernel come first, swapped."""
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    flat = flatten(autoencoder(cfg).abstract())
    return {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}


@pytest.mark.parametrize("name, encoder, decoder", [("taesd", 1222532, 1222531), ("taesd3", 1229456, 1229443)])
def test_presets_have_the_published_parameters(name, encoder, decoder):
    count = dict.fromkeys(SIDES, 0)
    for key, shape in torch_shapes(AUTOENCODERS[name]).items():
        count[key.split(".")[0]] += int(np.prod(shape))
    assert count == {"encoder": encoder, "decoder": decoder}


def test_the_preset_has_every_name_and_shape_of_diffusers_and_no_other():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in diffusers.AutoencoderTiny().state_dict().items()}
    assert torch_shapes(AUTOENCODERS["taesd"]) == found


def test_names_of_the_original_files():
    named = {
        "encoder.layers.0.weight": "encoder.0.weight",
        "encoder.layers.14.bias": "encoder.14.bias",
        "decoder.layers.0.weight": "decoder.1.weight",  # 0 squashes
        "decoder.layers.2.conv.4.bias": "decoder.3.conv.4.bias",
        "decoder.layers.18.weight": "decoder.19.weight",
    }
    assert {key: original_name(key) for key in named} == named
    assert named.keys() <= torch_shapes(AUTOENCODERS["taesd"]).keys()


def test_weights_survive_the_way_to_an_original_file_and_back():
    _, params = drawn(SMALL)
    there = {original_name(key): tensor for key, tensor in to_torch(params).items()}
    assert not any(".layers." in key for key in there)
    back = from_torch(there, autoencoder(SMALL).abstract(), rename=original_name)
    jax.tree.map(np.testing.assert_array_equal, params, back)


def published(name):
    """A network and its published weights."""
    folder = DATA / "taesd"
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent: it would hold the published weights ({name}_encoder.safetensors and so on)")
    files = {side: SafetensorsFile(folder / f"{name}_{side}.safetensors") for side in SIDES}
    tensors = {f"{side}.{key}": file[key] for side, file in files.items() for key in file}
    net = autoencoder(AUTOENCODERS[name])
    return net, from_torch(tensors, net.abstract(), rename=original_name)


def photograph(size):
    """The sample photograph that matplotlib brings along, [1, size, size, 3] in [-1, 1]."""
    path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photo = Image.open(path).convert("RGB").crop((0, 0, 512, 512)).resize((size, size), Image.Resampling.BICUBIC)
    return jnp.asarray(photo, jnp.float32)[None] / 127.5 - 1


def emoji(count):
    """Noto emoji on white, [count, 128, 128, 3] in [-1, 1]."""
    path = DATA / "noto-emoji" / "noto-emoji-png128.zip"
    if not path.is_file():
        pytest.skip(f"{path} is absent: it would hold Noto's emoji, 128 x 128")
    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        pictures = [Image.open(io.BytesIO(archive.read(n))).convert("RGBA") for n in names[:: len(names) // count]]
    white = Image.new("RGBA", (128, 128), "white")
    on_white = [np.asarray(Image.alpha_composite(white, p).convert("RGB")) for p in pictures[:count]]
    return jnp.asarray(np.stack(on_white), jnp.float32) / 127.5 - 1


def reconstruct(net, params, image):
    """The image through the posterior mean, and that mean."""
    mean = jnp.split(net.apply(params, image, method="encode"), 2, axis=-1)[0]
    return net.apply(params, mean, method="decode"), mean


def psnr(a, b):
    """Decibels for each image, white being 1."""
    return 10 * jnp.log10(4 / jnp.square(jnp.clip(a, -1, 1) - b).mean((1, 2, 3)))


def test_published_weights_in_diffusers():
    net, params = published("taesd")
    image = photograph(64)
    ours, mean = reconstruct(net, params, image)
    latent, picture = their_answers(to_torch(params), image, mean, "float32")
    assert relative(mean, latent) < 1e-5
    assert relative(ours, picture) < 1e-5


def decibels(net, params, images):
    """Of each image's reconstruction."""
    return np.asarray(jax.jit(lambda p, x: psnr(reconstruct(net, p, x)[0], x))(params, images))


@pytest.mark.parametrize("name, low, high", [("taesd", 22.9, 23.1), ("taesd3", 28.6, 28.8)])
def test_published_weights_reconstruct_a_photograph(name, low, high, record_property):
    """At 256 pixels, where 25 photographs of ImageNet give 24.0 dB with 4 channels and 28.1 with 16."""
    net, params = published(name)
    found = decibels(net, params, photograph(256)).item()
    record_property(f"{name}, a photograph of 256 px, dB", found)
    assert low < found < high


@pytest.mark.parametrize("name, low, high", [("taesd", 28.5, 28.7), ("taesd3", 33.6, 33.8)])
def test_published_weights_reconstruct_emoji(name, low, high, record_property):
    """At 128 pixels; 24 Fluent emoji give 33.0 and 37.4 dB at 256, 23.5 and 29.8 at 64."""
    net, params = published(name)
    found = decibels(net, params, emoji(12)).mean().item()
    record_property(f"{name}, 12 Noto emoji of 128 px, dB", found)
    assert low < found < high


@pytest.mark.parametrize("name", ["taesd", "taesd3"])
def test_published_latents_are_of_unit_scale(name):
    net, params = published(name)
    mean = reconstruct(net, params, photograph(128))[1]
    assert 0.7 < mean.std() < 1.1


def test_moments_have_no_spread():
    _, params = drawn(SMALL)
    moments, _ = both(SMALL, params, *inputs(SMALL))
    mean, logvar = jnp.split(moments, 2, axis=-1)
    assert mean.std() > 0.05
    np.testing.assert_array_equal(logvar, NO_SPREAD)
    assert np.exp(0.5 * NO_SPREAD) < 1e-6


def test_latents_are_squashed_before_they_are_decoded():
    _, params = drawn(SMALL)
    net, z = autoencoder(SMALL), jnp.ones((1, 2, 2, 4))
    far, farther = (net.apply(params, scale * z, method="decode") for scale in (100.0, 1000.0))
    np.testing.assert_allclose(far, farther, atol=1e-5)


def test_half_precision_is_close_and_gives_back_what_it_was_given():
    _, params = drawn(SMALL)
    image, z = inputs(SMALL)
    exact = both(SMALL, params, image, z)
    for ours, wanted in zip(both(replace(SMALL, dtype="bfloat16"), params, image, z), exact, strict=True):
        assert ours.dtype == jnp.float32 and 0 < relative(ours, np.asarray(wanted)) < 0.05


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="encoder_blocks has 3 levels, decoder_blocks 2: make them equal"):
        replace(SMALL, decoder_blocks=(1, 1))
    with pytest.raises(ValueError, match="image 16 x 18 is not divisible by 4"):
        autoencoder(SMALL).apply(drawn(SMALL)[1], jnp.zeros((1, 16, 18, 3)), method="encode")


# What both kinds of autoencoder share.


@pytest.mark.parametrize("cfg", [SMALL, KL], ids=["tiny", "kl"])
def test_latents_are_shifted_on_the_way_out_and_back_on_the_way_in(cfg):
    """diffusers' convention: (z - shift) * scale is diffused, z / scale + shift decoded; the scale is the caller's."""
    _, params = drawn(cfg)
    image, z = inputs(cfg)
    moments, picture = both(cfg, params, image, z)
    shifted, same_picture = both(replace(cfg, shift=0.5), params, image, z - 0.5)
    mean, logvar = np.split(np.asarray(moments), 2, axis=-1)
    np.testing.assert_allclose(shifted, np.concatenate([mean - 0.5, logvar], axis=-1), atol=1e-5)
    np.testing.assert_allclose(same_picture, picture, atol=1e-4)


def test_forced_upcasting_computes_in_single_precision():
    """Weights that overflow float16, as SDXL's autoencoder does."""
    _, params = drawn(KL)
    params["decoder"]["mid_block"]["resnets"]["0"]["conv2"]["bias"] += 1e5
    params["encoder"]["mid_block"]["resnets"]["0"]["conv2"]["bias"] += 1e5
    image, z = inputs(KL)
    exact = both(KL, params, image, z)
    half = replace(KL, dtype="float16")
    assert not any(jnp.isfinite(x).all() for x in both(half, params, image, z))
    for dtype in ("float16", "bfloat16"):
        forced = both(replace(KL, dtype=dtype, force_upcast=True), params, image, z)
        for ours, wanted in zip(forced, exact, strict=True):
            np.testing.assert_array_equal(ours, wanted)


def test_forced_upcasting_takes_and_gives_half_precision():
    cfg = replace(KL, dtype="float16", force_upcast=True)
    net = autoencoder(cfg)
    image = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float16)
    moments = jax.eval_shape(lambda p, x: net.apply(p, x, method="encode"), net.abstract(), image)
    assert moments.dtype == jnp.float16
    assert replace(cfg, dtype="float64").compute_dtype == jnp.float64  # never narrower
