"""A pipeline is found as a folder or fetched by name, no more of it than is read."""

import fnmatch
import sys
import types

import pytest

from lcm_jax.weights.diffusers_hub import hub_patterns, pickled_patterns, resolve

WEIGHTS = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model", "text_encoder_2/model")
CONFIGS = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder_2/config.json",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "tokenizer_2/tokenizer.json",
    "unet/config.json",
    "vae/config.json",
]
REPOSITORY = [
    *CONFIGS,
    *(f"{stem}{tag}.{end}" for stem in WEIGHTS for tag in ("", ".fp16") for end in ("safetensors", "bin", "msgpack")),
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    "unet/model.onnx",
    "vae_1_0/diffusion_pytorch_model.safetensors",
    "safety_checker/model.safetensors",
    "v1-5-pruned.safetensors",
    "README.md",
]


def chosen(variant):
    return {name for name in REPOSITORY if any(fnmatch.fnmatch(name, p) for p in hub_patterns(variant))}


def test_only_the_safetensors_of_one_variant_are_fetched():
    assert chosen(None) == {
        *CONFIGS,
        *(f"{stem}.safetensors" for stem in WEIGHTS),
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    }
    assert chosen("fp16") == {
        *CONFIGS,
        *(f"{stem}.fp16.safetensors" for stem in WEIGHTS),
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.fp16.json",
    }


def test_pickles_are_fetched_of_components_that_have_nothing_else(tmp_path, hub):
    for part in ("unet", "vae", "text_encoder"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").touch()
    (tmp_path / "vae" / "diffusion_pytorch_model.fp16.safetensors").touch()
    hub.answer = lambda offline: str(tmp_path)
    assert resolve("owner/model", "fp16") == tmp_path
    (_, first, _), (_, second, _) = hub.calls
    assert first == hub_patterns("fp16") and second == pickled_patterns(["unet", "text_encoder"], "fp16")
    there = [*REPOSITORY, "text_encoder/pytorch_model.fp16.bin", "text_encoder/pytorch_model.bin"]
    asked = {name for name in there if any(fnmatch.fnmatch(name, p) for p in second)}
    assert asked == {"unet/diffusion_pytorch_model.fp16.bin", "text_encoder/pytorch_model.fp16.bin"}


def test_of_an_autoencoder_alone_config_and_weights_are_fetched():
    repository = ["README.md", "config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
    wanted = [name for name in repository if any(fnmatch.fnmatch(name, p) for p in hub_patterns())]
    assert wanted == ["config.json", "diffusion_pytorch_model.safetensors"]


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for huggingface_hub that answers what its `answer` says and notes its calls."""
    calls = []

    def snapshot_download(repo_id, allow_patterns, local_files_only=False):
        calls.append((repo_id, allow_patterns, local_files_only))
        return module.answer(local_files_only)

    module = types.SimpleNamespace(snapshot_download=snapshot_download, calls=calls)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_a_folder_is_taken_as_it_is(tmp_path, hub):
    assert resolve(tmp_path) == tmp_path and resolve(str(tmp_path)) == tmp_path
    assert hub.calls == []


def test_a_name_is_fetched(tmp_path, hub):
    hub.answer = lambda offline: str(tmp_path)
    assert resolve("owner/model", "fp16") == tmp_path
    assert hub.calls == [("owner/model", hub_patterns("fp16"), False)]


def test_without_a_network_what_was_fetched_before_serves(tmp_path, hub):
    def answer(offline):
        if not offline:
            raise ConnectionError("no route\nto the hub")
        return str(tmp_path)

    hub.answer = answer
    assert resolve("owner/model") == tmp_path
    assert [offline for _, _, offline in hub.calls] == [False, True]


def test_a_name_that_is_not_to_be_had_says_what_to_give(hub):
    def answer(offline):
        raise ConnectionError("no route\nto the hub")

    hub.answer = answer
    with pytest.raises(FileNotFoundError) as caught:
        resolve("owner/model")
    expected = "no folder owner/model, and 'owner/model' was not to be had from the hub (no route): "
    assert str(caught.value) == expected + "give a downloaded folder"


def test_without_the_hubs_package_a_folder_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(FileNotFoundError, match="pip install it, or give a downloaded folder"):
        resolve("owner/model")


def test_what_can_be_no_name_is_never_asked_of_the_hub(tmp_path, hub):
    for path in (tmp_path / "nowhere", "./models/mine/deep", "../no/such/folder"):
        with pytest.raises(FileNotFoundError, match="no folder"):
            resolve(path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileNotFoundError, match="is a file: give the folder that holds model_index.json"):
        resolve(tmp_path / "model.safetensors")
    assert hub.calls == []
