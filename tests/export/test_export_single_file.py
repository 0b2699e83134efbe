"""Models leave as one file of the original layout and are read back whole; what the layout cannot say is refused."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sd

from lcm_jax import exporting, run_folder, source, start
from lcm_jax.diffusion.guidance import guidance_embedding
from lcm_jax.models import lora
from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.spec import GuidanceSpec, ModelSpec, PathSpec, TextSpec
from lcm_jax.models.unet import UNetConfig
from lcm_jax.weights.fetch import CLIP_MERGES, FetchError, fetch
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.single_file import SingleFile, write

ROOT = Path(__file__).parents[2]
TOWER = dataclasses.replace(tiny_sd.TOWER, heads=1, layers=1, eos_token_id=2)
VAE = AutoencoderConfig((32, 32), 1, force_upcast=True)  # as everyone takes it
# Two channels a group: where each has its own, the norms take out what time and w add.
UNET = UNetConfig((64,), (True,), (1,), (8,), 1, context_width=16)


def model(family: str) -> ModelSpec:
    """A tiny description whose file tells all of it."""
    unet, vae, towers, more = UNET, VAE, (TOWER,), {}
    if family != "sd1":
        unet = dataclasses.replace(unet, linear_projection=True, heads=(1,))
    if family == "sd2":
        towers, more = (dataclasses.replace(TOWER, hidden_act="gelu"),), {"path": PathSpec(zero_terminal_snr=True)}
    if family == "sdxl":
        unet = dataclasses.replace(unet, context_width=32, added_width=8 + 6 * 256)
        vae = dataclasses.replace(vae, scale=0.13025)
        towers = (TOWER, dataclasses.replace(TOWER, hidden_act="gelu", projection=8))
    text = TextSpec("clip", tiny_sd.LENGTH, towers, zero_empty=family == "sdxl")
    return ModelSpec("diffusion", "v" if family == "sd2" else "eps", 16, unet, vae, text=text, **more)


def student() -> ModelSpec:
    """A tiny consistency model that takes w."""
    spec = model("sd1")
    unet = dataclasses.replace(spec.unet, w_width=8)
    return dataclasses.replace(spec, role="consistency", unet=unet, guidance=GuidanceSpec(1.0, 9.0))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_file_is_read_back_whole(family, tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax", model(family))
    out = exporting.export(flax, tmp_path / family, "single-file", "float16")
    names = {f"{family}.safetensors", "README.md", "tokenizer", *["tokenizer_2"] * (family == "sdxl")}
    assert {path.name for path in out.iterdir()} == names
    file = SafetensorsFile(out / f"{family}.safetensors")
    assert all(file[key].dtype == np.float16 for key in file)
    assert file.metadata["modelspec.prediction_type"] == ("v" if family == "sd2" else "epsilon")
    assert ("v_pred" in file, "ztsnr" in file) == (family == "sd2",) * 2
    was, now = source.open_model(flax), source.open_model(file.path)
    # A file does not say how large pictures are.
    kept = {"about": now.spec.about, "image_size": now.spec.image_size}
    assert dataclasses.replace(was.spec, **kept) == now.spec
    for network in source.image_networks(was.spec) + source.text_networks(was.spec):
        wanted = jax.tree.map(lambda leaf: np.asarray(leaf, np.float16).astype(np.float32), was.load(network))
        jax.tree.map(np.testing.assert_array_equal, wanted, now.load(network))
    assert (now.captions.tokens(["a cat"]) == was.captions.tokens(["a cat"])).all()
    assert f"original layout of {family}" in (out / "README.md").read_text()


def test_a_file_that_comes_alone_is_given_clips_published_tokenizers(tmp_path):
    try:
        fetch(CLIP_MERGES)
    except FetchError as error:
        pytest.skip(f"the published vocabulary is not at hand: {error}")
    spec = model("sdxl")
    towers = tuple(dataclasses.replace(tower, vocabulary=49408) for tower in spec.text.towers)
    spec = dataclasses.replace(spec, text=dataclasses.replace(spec.text, towers=towers))
    out = exporting.export(tiny_sd.model_folder(tmp_path / "flax", spec), tmp_path / "whole", "single-file", "float16")
    (tmp_path / "alone").mkdir()
    file = (out / "whole.safetensors").rename(tmp_path / "alone" / "whole.safetensors")
    first, second = source.open_model(file).captions.tokens(["a photo of a cat"])[0]
    cat = [49406, 320, 1125, 539, 320, 2368, 49407]
    assert first.tolist()[:7] == second.tolist()[:7] == cat and (first[7], second[7]) == (49407, 0)
    again = exporting.export(file, tmp_path / "again", "diffusers")
    assert (again / "tokenizer" / "vocab.json").is_file() and (again / "tokenizer_2" / "merges.txt").is_file()


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A file of SD 2.x that does not say what it predicts, as most; its tokenizer beside it."""
    root = tmp_path_factory.mktemp("silent")
    flax = tiny_sd.model_folder(root / "flax", model("sd2"))
    told = SingleFile(exporting.export(flax, root / "told", "single-file") / "told.safetensors")
    write(root / "told" / "bare.safetensors", dict(told), "sd2")
    return root / "told" / "bare.safetensors"


def test_a_file_of_sd2_that_does_not_say_what_it_predicts_is_asked_about(silent, tmp_path):
    with pytest.raises(ValueError, match="does not say what its U-Net predicts: give --kind v if it is of 768 pixels"):
        source.open_model(silent)
    for kind, side in (("eps", 512), ("v", 768)):
        spec = source.open_model(silent, kind=kind).spec
        assert (spec.kind, spec.image_size) == (kind, side)
    out = exporting.export(silent, tmp_path / "out", "diffusers", kind="v")
    assert source.open_model(out).spec.kind == "v"
    # A run asks config.model: by kind, or by the family that is to be distilled.
    assert start.opened(str(silent), {"kind": "v"}, False)[1].image_size == 768
    with pytest.raises(ValueError, match="is not of config.model.family 'sd21_768': unet has"):  # tiny, but of its kind
        start.opened(str(silent), {"family": "sd21_768"}, False)


@pytest.mark.parametrize(
    "command", [("launch.score", "--config=configs/evaluation_paper.py", "--real=r"), ("launch.evaluate", "--data=d")]
)
def test_commands_pass_on_what_a_file_predicts(silent, tmp_path, command):
    asked = [sys.executable, "-m", *command, f"--model={silent}", f"--out={tmp_path / 'o'}"]
    how = {"cwd": ROOT, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}, "capture_output": True, "text": True}
    run = lambda *more: subprocess.run([*asked, *more], **how)
    assert "does not say what its U-Net predicts" in run().stderr
    told = run("--kind=v")  # comes as far as what else is missing
    assert told.returncode == 1 and "predicts" not in told.stderr, told.stderr


def test_adapters_of_a_file_that_does_not_say_what_it_predicts_are_merged(silent):
    spec = source.open_model(silent, kind="v").spec
    part = lora.init(jax.random.key(0), source.network(spec, "unet").abstract(), lora.LoraConfig(2, 2))
    spec = dataclasses.replace(spec, about={"lora": {"base": str(silent), "variant": None, "alpha": 2}})
    merged = run_folder.merged(spec, part)  # whose second half is zero
    jax.tree.map(np.testing.assert_array_equal, merged, source.open_model(silent, kind="v").load("unet"))


def test_a_fixed_w_is_the_student_told_that_w(tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax", student())
    out = exporting.export(flax, tmp_path / "out", "single-file", w=7.0)
    was, now = source.open_model(flax), source.open_model(out / "out.safetensors")
    assert (was.spec.unet.w_width, now.spec.unet.w_width) == (8, None)
    rng = np.random.default_rng(0)
    z, context = rng.normal(size=(2, 4, 4, 4)), rng.normal(size=(2, 5, 16))
    inputs = jnp.float32(z), jnp.array([5, 900]), jnp.float32(context)
    draw = lambda model, *more: source.network(model.spec, "unet").apply(model.load("unet"), *inputs, *more)  # noqa: E731
    told = draw(was, guidance_embedding(jnp.full(2, 7.0), 8))
    np.testing.assert_allclose(draw(now), told, rtol=1e-4, atol=1e-4)
    assert np.abs(draw(now) - draw(was, guidance_embedding(jnp.full(2, 2.0), 8))).max() > 1e-2
    card = (out / "README.md").read_text()
    assert "sample with `lcm`, 4 steps, cfg 1" in card and "fixed w: 7.0" in card and "LCMScheduler" in card

    # The same in the other formats.
    for format in ("flax", "diffusers"):
        model = source.open_model(exporting.export(flax, tmp_path / f"as_{format}", format, w=7.0))
        assert model.spec.role == "consistency" and model.spec.guidance is None and model.spec.unet.w_width is None
    with pytest.raises(ValueError, match=r"w = 12 is outside the range \[1, 9\] that this model was trained on"):
        exporting.export(flax, tmp_path / "other", "single-file", w=12.0)


def test_a_student_that_takes_w_says_who_cannot_give_it(tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax", student())
    out = exporting.export(flax, tmp_path / "out", "single-file")
    assert source.open_model(out / "out.safetensors").spec.unet.w_width == 8
    assert "export with one `--w` of your choice" in (out / "README.md").read_text()


WRONG = {
    "unet: heads is .2,., which its tensors do not show: readers of single files of sd1 take it for .8,.": {
        "unet": dataclasses.replace(UNET, heads=(2,))
    },
    "unet: norm_groups is 8": {"unet": dataclasses.replace(UNET, norm_groups=8)},
    "vae: scale is 1.0": {"autoencoder": dataclasses.replace(VAE, scale=1.0)},
    "vae: shift is 0.5": {"autoencoder": dataclasses.replace(VAE, shift=0.5)},
    "holds an autoencoder like Stable Diffusion's": {"autoencoder": TinyAutoencoderConfig(8, (1, 1), (1, 1))},
    "path.T is 500": {"path": PathSpec(T=500)},
    "predicts x0: readers of single files know eps and v alone": {"kind": "x0"},
    "an autoencoder alone: export it as flax": {"role": "autoencoder", "unet": None},
    "holds unet, vae, text_encoder, this model has no text_encoder": {"text": TextSpec("minilm", 12)},
}


@pytest.mark.parametrize("message", WRONG)
def test_what_a_file_cannot_say_is_refused(message, tmp_path):
    spec = dataclasses.replace(model("sd1"), **WRONG[message])
    flax = tmp_path / "flax"
    flax.mkdir()
    (flax / "model.json").write_text(json.dumps(spec.to_json()))  # refused before any weights are read
    with pytest.raises(ValueError, match=message) as raised:
        exporting.export(flax, tmp_path / "out", "single-file")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]
