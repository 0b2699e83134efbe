"""Latents are known to be an autoencoder's own: in any precision, by its encoder alone, when a run begins."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_sd

from lcm_jax import build, encoding
from lcm_jax.data import manifest
from lcm_jax.models.encoder_sketch import alike, sketch
from lcm_jax.source import open_model
from lcm_jax.weights.safetensors_file import write_tree


@pytest.fixture(scope="module")
def params():
    return tiny.weights(tiny.spec("autoencoder"))["autoencoder"]


def test_precision_and_the_decoder_make_no_difference(params):
    own = sketch(params)
    assert len(own) == len(set(own)) > 8
    for dtype in (jnp.float16, jnp.bfloat16):
        stored = jax.tree.map(lambda leaf, dtype=dtype: leaf.astype(dtype), params)
        assert alike(sketch(stored), own)
    tuned = {**params, "decoder": jax.tree.map(lambda leaf: 2 * leaf, params["decoder"])}
    assert sketch(tuned) == own


@pytest.mark.parametrize("part", ["encoder", "quant_conv"])
def test_another_encoder_is_told_apart(params, part):
    other = {**params, part: jax.tree.map(lambda leaf: leaf[..., ::-1], params[part])}
    assert not alike(sketch(other), sketch(params))


def test_fewer_numbers_are_of_another_encoder(params):
    assert not alike(sketch(params)[1:], sketch(params))


def test_latents_of_another_autoencoder_are_not_trained_on(tmp_path):
    first, second = (tiny_sd.model_folder(tmp_path / name, tiny_sd.spec()) for name in ("first", "second"))
    file = second / "autoencoder.safetensors"
    tensors = tiny.tree(second, "autoencoder")
    tensors["encoder"] = jax.tree.map(lambda leaf: np.ascontiguousarray(leaf[..., ::-1]), tensors["encoder"])
    write_tree(file, tensors)
    pictures = tiny.pictures(tmp_path / "pictures")
    for name, size in (("latents", None), ("large", 32)):
        options = {"folder": str(pictures)}
        encoding.encode(first, "image_folder", options, tmp_path / name, size=size, progress=False)
    assert manifest.read(tmp_path / "latents").sketch == sketch(open_model(first).load("autoencoder"))
    objective = {"name": "lcd", "w_min": 1.0, "w_max": 2.0, "w_width": 8}
    config = lambda model: tiny.config(objective, {"teacher": str(model), "w_width": 8}, tmp_path / "latents")
    build.run(config(first)).loader.close()
    with pytest.raises(ValueError, match="were made by another autoencoder than the model's: encode them again"):
        build.run(config(second))
    noise = {"start": str(second), "network": "dit_tiny"}
    with pytest.raises(ValueError, match="start from the model that made them"):
        build.run(tiny.config({"name": "ct", "steps": 3}, noise, tmp_path / "large"))
