"""Models from anywhere: what they are asked for, straight onto a mesh, and what is missing."""


import jax
import numpy as np
import pytest
import tiny_sd
from safetensors.numpy import save_file

from lcm_jax import exporting
from lcm_jax.assembly import placer
from lcm_jax.parallel import rules
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.source import in_dtype, network, open_model
from lcm_jax.weights.safetensors_file import SafetensorsFile


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def written(request, tmp_path_factory):
    """The same model as our folder and as diffusers'."""
    where = tmp_path_factory.mktemp(request.param)
    ours = tiny_sd.model_folder(where / "ours", tiny_sd.spec(request.param, kind="v"))
    return ours, exporting.export(ours, where / "diffusers", "diffusers")


def test_the_identity_of_captions_outlives_another_precision(written, tmp_path):
    half = exporting.export(written[0], tmp_path / "half", "diffusers", "float16")
    assert open_model(half).captions.identity == open_model(written[0]).captions.identity


def test_another_kind_than_the_folder_says_is_refused(written):
    for where in written:
        assert open_model(where, kind="v").spec.kind == "v"
        with pytest.raises(ValueError, match="kind 'eps' was asked for, but .* says that it predicts 'v'"):
            open_model(where, kind="eps")


def test_weights_travel_to_a_mesh_in_parts(written, monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 1)
    model, mesh = open_model(written[1]), make_mesh(data=1, fsdp=8)
    abstract = network(model.spec, "autoencoder").abstract()
    parts = model.load("autoencoder", placer(abstract, "fsdp", mesh, "bfloat16"))
    kernel = parts["encoder"]["conv_in"]["kernel"]
    assert kernel.dtype == "bfloat16" and kernel.sharding.shard_shape(kernel.shape)[-1] == kernel.shape[-1] // 8
    with pytest.raises(ValueError, match="unknown dtype 'float64'; choose one of float32, float16, bfloat16"):
        in_dtype("float64")
    whole = model.load("autoencoder", in_dtype("bfloat16"))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(parts), jax.device_get(whole))


def test_a_damaged_folder_of_ours_is_named(written, tmp_path):
    import shutil

    where = shutil.copytree(written[0], tmp_path / "model")
    (where / "unet.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="unet.safetensors is no complete safetensors file"):
        open_model(where).load("unet")
    (where / "unet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks unet.safetensors: give a whole folder"):
        open_model(where).load("unet")


def test_a_model_without_its_tokenizer_says_so(written, tmp_path):
    import shutil

    where = shutil.copytree(written[0], tmp_path / "model")
    shutil.rmtree(where / "tokenizer")
    with pytest.raises(FileNotFoundError, match="text encoders need as many tokenizers"):
        open_model(where).captions.tokens(["a"])


def test_a_tokenizer_of_another_model_is_refused(written, tmp_path):
    import json
    import shutil

    where = shutil.copytree(written[0], tmp_path / "model")
    words = json.loads((where / "tokenizer" / "vocab.json").read_text())
    (where / "tokenizer" / "vocab.json").write_text(json.dumps({**words, "zebra</w>": len(words)}))
    with pytest.raises(ValueError, match="they are of different models"):
        open_model(where).captions.tokens(["a"])


def test_an_autoencoder_alone_is_that_of_its_pipeline(written):
    whole, alone = open_model(written[1]), open_model(written[1] / "vae")
    assert (alone.spec.role, alone.spec.unet, alone.spec.image_size) == ("autoencoder", None, 16)
    assert alone.spec.autoencoder == whole.spec.autoencoder
    assert alone.fingerprint("autoencoder") == whole.fingerprint("autoencoder")
    jax.tree.map(np.testing.assert_array_equal, alone.load("autoencoder"), whole.load("autoencoder"))


def test_the_identity_of_weights_is_that_of_the_files_that_are_read(written, tmp_path):
    import json
    import shutil

    where = shutil.copytree(written[1], tmp_path / "model")
    part, stem = where / "unet", "diffusion_pytorch_model"
    alone, (file,) = open_model(where).fingerprint("unet"), open_model(where).files("unet")
    assert file == part / f"{stem}.safetensors"
    for other in (f"{stem}.fp16.safetensors", f"{stem}.bin", f"{stem}-00001-of-00002.safetensors"):
        shutil.copy(file, part / other)
    assert open_model(where).fingerprint("unet") == alone
    assert open_model(where, "fp16").files("unet") == [part / f"{stem}.fp16.safetensors"]
    tensors = SafetensorsFile(file)
    halves = {f"{stem}-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for name, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, part / name)
    home = {key: name for name, keys in halves.items() for key in keys}
    (part / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    file.unlink()
    assert [path.name for path in open_model(where).files("unet")] == list(halves)


def test_what_is_no_autoencoder_or_lacks_its_weights_is_named(written, tmp_path):
    import json
    import shutil

    with pytest.raises(FileNotFoundError, match="unet holds neither model.json nor model_index.json nor an autoenc"):
        open_model(written[1] / "unet")
    where = shutil.copytree(written[1] / "vae", tmp_path / "vae")
    (where / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="vae holds none of diffusion_pytorch_model.safetensors"):
        open_model(where).load("autoencoder")
    said = json.loads((where / "config.json").read_text())
    for changes, message in (
        ({"sample_size": None}, "vae is of images of sample_size None; supported: one whole number"),
        ({"latents_mean": [0.0]}, "vae/config.json has latents_mean = "),
    ):
        (where / "config.json").write_text(json.dumps({**said, **changes}))
        with pytest.raises(ValueError, match=message):
            open_model(where)
