"""Models leave as folders that diffusers loads whole, draws the same pictures with, and that come back bit for bit."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
import tiny_sd
from safetensors.numpy import load_file

from lcm_jax import captions, exporting, source
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.spec import GuidanceSpec, PathSpec, TextSpec
from lcm_jax.weights import diffusers_folder

CLASS = {
    "sd1": "StableDiffusionPipeline",
    "sd2": "StableDiffusionPipeline",
    "lcm": "LatentConsistencyModelPipeline",
    "lcm-without-w": "StableDiffusionPipeline",
    "sdxl-lcm": "StableDiffusionXLPipeline",
}
TAESD = TinyAutoencoderConfig(8, (1, 2, 1), (1, 1, 2), scale=1.5)


def model(family):
    """A tiny description of that shape."""
    made = tiny_sd.spec("sdxl" if family.startswith("sdxl") else "sd")
    unet = made.unet
    if family == "sd2":
        unet = dataclasses.replace(unet, linear_projection=True)
        more = {"autoencoder": TAESD, "path": PathSpec(zero_terminal_snr=True), "spacing": "leading"}
        return dataclasses.replace(made, unet=unet, kind="v", **more)
    if family == "lcm-without-w":
        return dataclasses.replace(made, role="consistency", about={"lora": {"base": "owner/model"}})
    if "lcm" in family:
        unet = dataclasses.replace(unet, w_width=8)
        more = {"guidance": GuidanceSpec(1.0, 5.0), "original_steps": 25, "timestep_scaling": 8.0, "steps": (1, 4)}
        return dataclasses.replace(made, role="consistency", unet=unet, about={"attribution": ["Me"]}, **more)
    return made


@pytest.fixture(scope="module", params=CLASS)
def exported(request, tmp_path_factory):
    """Its family, the Flax folder and the diffusers folder made of it."""
    root = tmp_path_factory.mktemp(request.param)
    flax = tiny_sd.model_folder(root / "flax", model(request.param))
    return request.param, flax, exporting.export(flax, root / "diffusers", "diffusers")


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype, path
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def test_a_model_comes_back_as_it_left(exported):
    name, flax, folder = exported
    was, now = source.open_model(flax), source.open_model(folder)
    kept = {"about": now.spec.about, "guidance": now.spec.guidance, "steps": now.spec.steps}
    assert dataclasses.replace(was.spec, **kept) == now.spec
    assert diffusers_folder.describe(folder).noted == json.loads(
        json.dumps({key: was.spec.to_json()[key] for key in ("guidance", "steps", "about")})
    )
    for network in source.image_networks(was.spec) + source.text_networks(was.spec):
        assert_same(was.load(network), now.load(network))
    assert [path.name for path in now.tokenizers] == ["tokenizer", "tokenizer_2"][: len(was.spec.text.towers)]
    assert (now.captions.tokens(["a cat"]) == was.captions.tokens(["a cat"])).all()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["diffusers", "flax"]


def test_diffusers_loads_every_tensor_and_no_other(exported):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    name, _, folder = exported
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipe).__name__ == CLASS[name]
    if name == "sd1":
        diffusers.AutoPipelineForInpainting.from_pretrained(folder, local_files_only=True)
    index = json.loads((folder / "model_index.json").read_text())
    for part, entry in index.items():
        if part.startswith("_") or not isinstance(entry, list) or entry[1] is None:
            continue
        loaded = getattr(pipe, part)
        if not isinstance(loaded, torch.nn.Module):
            continue
        assert type(loaded).__name__ == entry[1]
        library = {"diffusers": diffusers, "transformers": transformers}[entry[0]]
        again, info = getattr(library, entry[1]).from_pretrained(folder / part, output_loading_info=True)
        assert {key: list(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")} == {
            "missing_keys": [],
            "unexpected_keys": [],
            "mismatched_keys": [],
        }
        (file,) = (folder / part).glob("*.safetensors")
        stored = {key.removeprefix("text_model."): value for key, value in load_file(file).items()}
        theirs = {key.removeprefix("text_model."): value for key, value in again.state_dict().items()}
        theirs.pop("embeddings.position_ids", None)
        assert stored.keys() == theirs.keys()
        for key, value in theirs.items():
            assert value.numpy().tobytes() == stored[key].tobytes(), key


def test_the_scheduler_samples_as_the_model_was_trained(exported):
    name, flax, folder = exported
    spec = source.open_model(flax).spec
    said = json.loads((folder / "scheduler/scheduler_config.json").read_text())
    assert said["_class_name"] == ("LCMScheduler" if "lcm" in name else "DDIMScheduler")
    assert said["prediction_type"] == {"eps": "epsilon", "v": "v_prediction"}[spec.kind]
    assert said["rescale_betas_zero_snr"] is spec.path.zero_terminal_snr
    if "lcm" in name:
        assert (said["original_inference_steps"], said["timestep_scaling"]) == (
            spec.original_steps,
            spec.timestep_scaling,
        )
    assert said["timestep_spacing"] == spec.spacing == ("leading" if name == "sd2" else "trailing")
    index = json.loads((folder / "model_index.json").read_text())
    assert index.get("force_zeros_for_empty_prompt") == (True if "sdxl" in name else None)
    assert json.loads((folder / "unet/config.json").read_text())["time_cond_proj_dim"] == spec.unet.w_width


def test_the_card_says_how_to_draw(exported):
    name, _, folder = exported
    card = (folder / "README.md").read_text()
    assert f"DiffusionPipeline.from_pretrained('{folder.name}', torch_dtype=torch.float32)" in card
    scale = {"lcm": "guidance_scale=4)", "sdxl-lcm": "guidance_scale=4)", "lcm-without-w": "guidance_scale=1)"}
    assert scale.get(name, "guidance_scale=7.5)") in card and "cond + w (cond - uncond)" in card
    assert f"Pipeline.load('{folder.name}')" in card
    assert ("Adapters of owner/model, whose licence holds, too" in card) is (name == "lcm-without-w")
    if name == "lcm":
        assert "Trained on Me" in card and "trained on [1, 5]" in card


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_comes_back_bit_for_bit(dtype, tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax", model("sdxl"))
    first = exporting.export(flax, tmp_path / "first", "diffusers", dtype)
    between = exporting.export(first, tmp_path / "between", "flax", dtype, msgpack=False)
    again = exporting.export(between, tmp_path / "again", "diffusers", dtype)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert sum(path.suffix == ".safetensors" for path in files) == 4
    for path in files:
        if path.name not in ("README.md", "model_index.json"):  # they name the folder, and what it came of
            assert (first / path).read_bytes() == (again / path).read_bytes(), path
    stored = load_file(first / "unet/diffusion_pytorch_model.safetensors").values()
    assert {array.dtype for array in stored} == {np.dtype(getattr(ml_dtypes, dtype, dtype))}


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_what_diffusers_saved_comes_back_to_it(name, tmp_path):
    """save_pretrained -> Flax -> diffusers, each tensor as it was, the class of each component, too."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    first = exporting.export(tiny_sd.model_folder(tmp_path / "a", model(name)), tmp_path / "b", "diffusers")
    pipe = diffusers.DiffusionPipeline.from_pretrained(first, local_files_only=True)
    pipe.save_pretrained(tmp_path / "theirs")
    flax = exporting.export(tmp_path / "theirs", tmp_path / "flax")
    back = exporting.export(flax, tmp_path / "back", "diffusers")
    for part in ("unet", "vae", "text_encoder", *["text_encoder_2"] * (name == "sdxl")):
        (was,), (now,) = ((root / part).glob("*.safetensors") for root in (tmp_path / "theirs", back))
        was, now = ({k.removeprefix("text_model."): v for k, v in load_file(file).items()} for file in (was, now))
        assert was.keys() == now.keys()
        assert all(was[key].tobytes() == now[key].tobytes() for key in was)
    theirs, ours = (json.loads((root / "model_index.json").read_text()) for root in (tmp_path / "theirs", back))
    assert theirs["_class_name"] == ours["_class_name"]
    assert {k: theirs[k] for k in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")} == {
        k: ours[k] for k in ("unet", "vae", "scheduler", "text_encoder", "tokenizer")
    }


@pytest.fixture
def captioned_by_others(tmp_path, monkeypatch):
    """A student whose captions are read by an encoder that diffusers does not have."""
    monkeypatch.setitem(captions.ENCODERS, "minilm", tiny.FakeCaptions)
    spec = dataclasses.replace(model("lcm"), text=TextSpec("minilm", 12))
    return tiny.model_folder(tmp_path / "flax", spec)


def test_captions_of_another_encoder_are_handed_over_as_states(captioned_by_others, tmp_path):
    out = exporting.export(captioned_by_others, tmp_path / "out", "diffusers")
    assert not (out / "text_encoder").exists() and not (out / "tokenizer").exists()
    card = (out / "README.md").read_text()
    assert "text_encoder=None, tokenizer=None" in card and "[b, 12, 16] are that encoder's token states" in card
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pipe = diffusers.DiffusionPipeline.from_pretrained(out, text_encoder=None, tokenizer=None, local_files_only=True)
    drawn = pipe(prompt_embeds=torch.zeros(1, 12, 16), num_inference_steps=2, guidance_scale=3, output_type="np")
    assert drawn.images.shape == (1, 16, 16, 3)


def test_a_tokenizer_pads_to_the_models_length(tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax", model("sd1"))
    (flax / "tokenizer/tokenizer_config.json").unlink()
    out = exporting.export(flax, tmp_path / "out", "diffusers")
    assert json.loads((out / "tokenizer/tokenizer_config.json").read_text()) == {"model_max_length": tiny_sd.LENGTH}


WRONG = [
    ({"autoencoder": dataclasses.replace(tiny_sd.AUTOENCODER, patch=2, channels=(8, 8, 8))}, "autoencoder.patch is 2"),
    ({"autoencoder": dataclasses.replace(tiny_sd.AUTOENCODER, shift=0.5)}, "autoencoder.shift is 0.5"),
    ({"autoencoder": dataclasses.replace(TAESD, shift=0.5)}, "autoencoder.shift is 0.5"),
    ({"role": "autoencoder", "unet": None}, "an autoencoder alone, no pipeline: export it as flax"),
]


@pytest.mark.parametrize("changes, message", WRONG)
def test_what_diffusers_has_no_words_for_is_one_line(changes, message, tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax", dataclasses.replace(model("sd1"), **changes))
    with pytest.raises(ValueError, match=message) as raised:
        exporting.export(flax, tmp_path / "out", "diffusers")
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["flax"]


def test_bad_input_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    spec = model("sd1")
    flax = tiny_sd.model_folder(tmp_path / "flax", spec)
    export = lambda out, given=flax, **kw: exporting.export(given, tmp_path / out, **{"format": "diffusers", **kw})  # noqa: E731
    out = export("out")
    with pytest.raises(FileExistsError, match="holds an exported model: .* or give --overwrite"):
        export("out")
    export("out", dtype="float16", overwrite=True)
    assert load_file(out / "unet/diffusion_pytorch_model.safetensors")["conv_in.weight"].dtype == np.float16
    theirs = shutil.copytree(out, tmp_path / "theirs")
    (theirs / "README.md").write_text("# a model of someone else's")
    with pytest.raises(FileExistsError, match="exists and is no exported model"):
        export("theirs", overwrite=True)
    with pytest.raises(ValueError, match="unknown format 'onnx'; choose one of flax, diffusers, single-file, lora, "):
        export("other", format="onnx")
    with pytest.raises(ValueError, match="unknown dtype 'int8'"):
        export("other", dtype="int8")
    with pytest.raises(ValueError, match="is a whole model, not the run that trained adapters: give --checkpoint RUN"):
        export("other", format="lora")
    with pytest.raises(ValueError, match="w = 3 was given to be fixed, but this model takes no w"):
        export("other", w=3.0)
    shutil.rmtree(flax / "tokenizer")
    with pytest.raises(FileNotFoundError, match="1 text encoders need as many tokenizers, found 0"):
        export("other")
    large = tiny_sd.weights(spec)
    large["unet"]["mid_block"]["resnets"]["1"]["conv2"]["kernel"][0, 0, 0, 0] = 1e5
    huge = tiny_sd.model_folder(tmp_path / "huge", spec)
    tiny_sd.folder.write(huge, spec.to_json(), large)
    with pytest.raises(ValueError, match="unet/mid_block/resnets/1/conv2/kernel reaches 100000, too large for float16"):
        export("other", given=huge, dtype="float16")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(OSError, match="disk full: the export takes .* MB .* make room or export elsewhere"):
        export("deep/down/other", given=huge)
    monkeypatch.undo()
    plain = Path.open
    full = lambda *a, **kw: open("/dev/full", "wb", buffering=0) if "wb" in a else plain(*a, **kw)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="safetensors could not be written .*No space left.*make room"):
        export("other", given=huge)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flax", "huge", "out", "theirs"]
