"""A folder that diffusers saved is described, and its weights give in our networks what they give in theirs."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from published_configs import PUBLISHED
from safetensors.numpy import load_file, save_file

from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.spec import PathSpec
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import fill, to_torch
from lcm_jax.weights.diffusers_config import autoencoder_config, unet_config
from lcm_jax.weights.diffusers_folder import describe, lone_autoencoder
from lcm_jax.weights.diffusers_names import autoencoder_names
from lcm_jax.weights.tensor_files import open_tensors


def write(folder, parts):
    """The JSON files of a pipeline, in their places, without weights."""
    for part, content in parts.items():
        name = {"model_index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}
        path = folder / name.get(part, f"{part}/config.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    for part in parts["model_index"]:
        if part.startswith("tokenizer"):
            (folder / part).mkdir()
    return folder


@pytest.mark.parametrize(
    "name, family, kind, size, scale",
    [
        ("stable-diffusion-v1-5", "sd", "eps", 512, 0.18215),
        ("stable-diffusion-2-1-base", "sd", "eps", 512, 0.18215),
        ("stable-diffusion-2-1", "sd", "v", 768, 0.18215),
        ("stable-diffusion-xl-base-1.0", "sdxl", "eps", 1024, 0.13025),
        ("LCM_Dreamshaper_v7", "sd", "eps", 512, 0.18215),
    ],
)
def test_published_pipelines(name, family, kind, size, scale, tmp_path):
    found = describe(write(tmp_path, PUBLISHED[name]))
    assert (found.family, found.kind, found.image_size) == (family, kind, size)
    assert found.autoencoder["scale"] == scale and PathSpec(**found.path) == PathSpec()
    xl, lcm = family == "sdxl", name.startswith("LCM")
    assert (found.is_lcm, found.unet["w_width"], found.original_steps) == (
        (True, 256, 50) if lcm else (False, None, None)
    )
    assert found.zero_empty_caption == xl
    assert list(found.text_encoders) == ["text_encoder", "text_encoder_2"][: 1 + xl]
    assert found.text_encoders["text_encoder"] == PUBLISHED[name]["text_encoder"]
    assert found.tokenizers == {part: tmp_path / part for part in ["tokenizer", "tokenizer_2"][: 1 + xl]}


def test_an_autoencoder_saved_by_itself(tmp_path):
    """sd-vae-ft-ema: SD 1's autoencoder, of pictures of 256 pixels; keys it leaves out are diffusers' own."""
    assert lone_autoencoder(tmp_path) is None
    said = {k: v for k, v in PUBLISHED["stable-diffusion-v1-5"]["vae"].items() if k != "norm_num_groups"}
    (tmp_path / "config.json").write_text(json.dumps({**said, "_diffusers_version": "0.4.2", "sample_size": 256}))
    sizes, side = lone_autoencoder(tmp_path)
    assert (AutoencoderConfig(**sizes), side) == (AutoencoderConfig(force_upcast=True), 256)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["stable-diffusion-v1-5"]["unet"]))
    assert lone_autoencoder(tmp_path) is None


CLASSES = {  # pipeline, scheduler, hidden sizes of the text encoders, how it is saved
    "sd15": ("StableDiffusionPipeline", "PNDMScheduler", (24,), dict()),
    "sd21": ("StableDiffusionPipeline", "DDIMScheduler", (24,), dict(variant="fp16", max_shard_size="100KB")),
    "sdxl": ("StableDiffusionXLPipeline", "EulerDiscreteScheduler", (8, 16), dict(safe_serialization=False)),
    "lcm": ("LatentConsistencyModelPipeline", "LCMScheduler", (24,), dict(max_shard_size="100KB")),
}
KINDS = {"sd21": "v_prediction"}
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
JUST_AS_SAVED = {"rtol": 0, "atol": 0}


def unet_case(name):
    """Sizes, diffusers' keyword arguments and inputs of a small U-Net."""
    sizes, theirs, _ = cases.UNETS["lcm" if name == "sd15" else name]
    inputs = cases.unet_inputs("lcm" if name == "sd15" else name)
    if name == "sd15":  # as LCM's, which was made of it
        theirs = {key: value for key, value in theirs.items() if key != "time_cond_proj_dim"}
        sizes, _ = replace(sizes, w_width=None), inputs.pop("w_features")
    return sizes, theirs, {k: v.astype(np.int64 if k == "t" else np.float32) for k, v in inputs.items()}


@pytest.fixture(scope="module", params=CLASSES)
def saved(request, tmp_path_factory):
    """A tiny random pipeline: its case, its folder, and the U-Net and autoencoder that were saved."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    diffusers.utils.logging.disable_progress_bar()
    pipeline, scheduler, widths, how = CLASSES[request.param]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(request.param)
    words = {word: i for i, word in enumerate(["!", "a</w>", "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)

    def text_encoder(cls, width):
        sizes = dict(hidden_size=width, intermediate_size=16, projection_dim=10, max_position_embeddings=8)
        sizes |= dict(num_hidden_layers=1, num_attention_heads=2, vocab_size=4, bos_token_id=2, eos_token_id=3)
        return cls(transformers.CLIPTextConfig(**sizes))

    parts = {
        "unet": diffusers.UNet2DConditionModel(sample_size=8, **unet_case(request.param)[1]),
        "vae": diffusers.AutoencoderKL(scaling_factor=0.5, **cases.AUTOENCODERS["kl"][1]),
        "scheduler": getattr(diffusers, scheduler)(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=KINDS.get(request.param, "epsilon"),
            steps_offset=1,
            **({} if scheduler in ("PNDMScheduler", "EulerDiscreteScheduler") else {"clip_sample": False}),
        ),
        "text_encoder": text_encoder(transformers.CLIPTextModel, widths[0]),
        "tokenizer": tokenizer,
    }
    if len(widths) > 1:
        parts["text_encoder_2"] = text_encoder(transformers.CLIPTextModelWithProjection, widths[1])
        parts["tokenizer_2"] = tokenizer
    else:
        parts |= dict(safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    with torch.no_grad():
        for net in (parts["unet"], parts["vae"]):
            for weight in net.parameters():
                weight += 0.05 * torch.randn_like(weight)  # norms, too, and whatever begins at zero
    getattr(diffusers, pipeline)(**parts).save_pretrained(folder / "saved", **how)
    return request.param, folder / "saved", parts["unet"].eval(), parts["vae"].eval()


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def nchw(x, torch):
    return torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2)


def loaded(folder, part, net, names=lambda tensors: str, variant=None):
    tensors = open_tensors(folder / part, variant=variant)
    return fill(tensors, net.abstract(), lambda path, array: jnp.asarray(array), rename=names(tensors))


def test_a_saved_pipeline_is_described(saved):
    name, folder, *_ = saved
    found = describe(folder)
    assert UNetConfig(**found.unet) == unet_case(name)[0]
    sizes = AutoencoderConfig((16, 16, 32), 2, norm_groups=8, scale=0.5, force_upcast=True)
    assert AutoencoderConfig(**found.autoencoder) == sizes
    assert (found.family, found.image_size) == ("sdxl" if name == "sdxl" else "sd", 32)
    assert (found.kind, found.is_lcm) == ("v" if name == "sd21" else "eps", name == "lcm")
    assert PathSpec(**found.path) == PathSpec()
    assert [config["hidden_size"] for config in found.text_encoders.values()] == list(CLASSES[name][2])
    assert all((place / "tokenizer.json").is_file() for place in found.tokenizers.values())


def test_a_saved_unet_answers_as_it_does_in_diffusers_and_goes_back(saved):
    import torch

    name, folder, theirs, _ = saved
    found, inputs = describe(folder), unet_case(name)[2]
    net = unet(UNetConfig(**found.unet))
    params = loaded(folder, "unet", net, variant=CLASSES[name][3].get("variant"))
    real = {k: torch.tensor(v) for k, v in inputs.items()}
    added = {"text_embeds": real["pooled"], "time_ids": real["time_ids"]} if "pooled" in real else None
    z, more = nchw(inputs["z"], torch), dict(timestep_cond=real.get("w_features"), added_cond_kwargs=added)
    with torch.no_grad():
        want = theirs(z, real["t"], real["context"], **more).sample
    ours = {k: jnp.asarray(v) for k, v in inputs.items()}
    apply = jax.jit(net.apply, compiler_options=QUICK)
    out = apply(params, **ours)
    assert relative(out, want.permute(0, 2, 3, 1).numpy()) < 1e-5

    again = type(theirs).from_config(unet_config(found.unet, 8)).eval()
    again.load_state_dict({key: torch.tensor(value) for key, value in to_torch(params).items()})  # strict
    with torch.no_grad():
        torch.testing.assert_close(again(z, real["t"], real["context"], **more).sample, want, **JUST_AS_SAVED)


def test_a_saved_autoencoder_is_that_of_diffusers_and_goes_back(saved):
    import torch

    name, folder, _, theirs = saved
    sizes = describe(folder).autoencoder
    net = autoencoder(AutoencoderConfig(**sizes))
    params = loaded(folder, "vae", net, autoencoder_names, CLASSES[name][3].get("variant"))
    again = type(theirs).from_config(autoencoder_config(sizes, 32))
    again.load_state_dict({key: torch.tensor(value) for key, value in to_torch(params).items()})  # strict
    torch.testing.assert_close(again.state_dict(), theirs.state_dict(), **JUST_AS_SAVED)
    assert again.config.scaling_factor == 0.5
    if name != "sd15":  # the others' are of the same sizes
        return
    image, z = (cases.autoencoder_inputs("kl")[key].astype(np.float32) for key in ("image", "z"))
    with torch.no_grad():
        moments = theirs.encode(nchw(image, torch)).latent_dist.parameters.permute(0, 2, 3, 1).numpy()
        back = theirs.decode(nchw(z, torch)).sample.permute(0, 2, 3, 1).numpy()
    call = jax.jit(net.apply, static_argnames="method", compiler_options=QUICK)
    assert relative(call(params, image, method="encode"), moments) < 1e-5
    assert relative(call(params, z, method="decode"), back) < 1e-5


@pytest.mark.parametrize("saved", ["sd15"], indirect=True)  # files of that age are Stable Diffusion 1's
def test_an_autoencoder_of_old_names_is_what_diffusers_makes_of_it(saved, tmp_path):
    import torch

    _, folder, _, theirs = saved
    shutil.copytree(folder / "vae", tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(path)
    for key in list(tensors):
        for now, then in old.items():
            if f".{now}." in key:
                tensors[key.replace(now, then)] = tensors.pop(key)
    assert sum(".proj_attn." in key for key in tensors) == 4
    save_file(tensors, path, {"format": "pt"})
    net = autoencoder(AutoencoderConfig(**describe(folder).autoencoder))
    ours = {
        key: torch.tensor(value) for key, value in to_torch(loaded(tmp_path, "vae", net, autoencoder_names)).items()
    }
    theirs = type(theirs).from_pretrained(tmp_path / "vae").state_dict()  # they rename, too
    torch.testing.assert_close(ours, dict(theirs), **JUST_AS_SAVED)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path, PUBLISHED["stable-diffusion-v1-5"])


def change(folder, path, **keys):
    path = folder / path
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_a_folder_without_an_index_says_what_is_there(folder):
    (folder / "model_index.json").unlink()
    listed = "scheduler, text_encoder, tokenizer, unet, vae"
    with pytest.raises(FileNotFoundError, match=rf"holds no model_index.json \(it has {listed}\)"):
        describe(folder)
    with pytest.raises(FileNotFoundError, match="nothing is there"):
        describe(folder / "nowhere")


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_component_is_named(folder, part):
    shutil.rmtree(folder / part)
    with pytest.raises(FileNotFoundError, match=f"has no folder {part}, which model_index.json names"):
        describe(folder)


def test_a_component_that_was_not_saved_is_named(folder):
    change(folder, "model_index.json", text_encoder=[None, None])
    with pytest.raises(ValueError, match=r"names no text_encoder \(it says \[None, None\]\): give a whole pipeline"):
        describe(folder)


@pytest.mark.parametrize("part", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
def test_a_damaged_or_missing_file_is_named(folder, part):
    (folder / part).write_text("{")
    with pytest.raises(ValueError, match=f"{part} is not valid JSON"):
        describe(folder)
    (folder / part).write_text("[]")
    with pytest.raises(ValueError, match=f"{part} holds no JSON object"):
        describe(folder)
    (folder / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {part.split('/')[-1]}"):
        describe(folder)


@pytest.mark.parametrize(
    "part, keys, message",
    [
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "supported: StableDiffusionPipeline, Lat"),
        ("model_index.json", {"_class_name": "StableDiffusionInpaintPipeline"}, "is of a StableDiffusionInpaint"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "supported: CLIPTextModel"),
        ("model_index.json", {"vae": ["diffusers", "ConsistencyDecoderVAE"]}, "vae is a ConsistencyDecoderVAE; "),
        ("model_index.json", {"vae": ["diffusers", "AutoencoderTiny"]}, "vae/config.json has .* which is not supp"),
        ("model_index.json", {"_lcm_jax": [1]}, r"model_index.json has _lcm_jax = \[1\], no JSON object"),
        ("model_index.json", {"scheduler": ["diffusers", "CogVideoXDDIMScheduler"]}, "_class_name = 'CogVideoXDDIM"),
        ("unet/config.json", {"class_embed_type": "timestep"}, "unet/config.json has class_embed_type = 'timestep'"),
        ("unet/config.json", {"in_channels": 9}, "turns 9 channels into 4, .*/vae makes 4: .*inpainting"),
        ("unet/config.json", {"out_channels": 8}, "turns 4 channels into 8"),
        ("unet/config.json", {"cross_attention_dim": 1024}, "captions 1024 wide, text_encoder make 768"),
        ("unet/config.json", {"sample_size": [64, 96]}, r"sample_size \[64, 96\]; supported: one whole number"),
        ("vae/config.json", {"shift_factor": 0.1}, "/vae has shift_factor = 0.1, which diffusers' model_index.json"),
        ("model_index.json", {"_class_name": ["pipeline", "Mine"]}, r"is of a \['pipeline', 'Mine'\]; supported"),
        ("model_index.json", {"unet": ["mine", "UNet2DConditionModel"]}, r"unet has code of its own \(mine\); supp"),
        ("model_index.json", {"scheduler": ["diffusers", ["a", "b"]]}, r"_class_name = \['a', 'b'\]"),
        ("vae/config.json", {"latent_channels": 16}, "turns 4 channels into 4, .*/vae makes 16"),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "scheduler_config.json joins"),
    ],
)
def test_what_is_not_supported_or_does_not_fit_is_named(folder, part, keys, message):
    change(folder, part, **keys)
    with pytest.raises(ValueError, match=message) as caught:
        describe(folder)
    assert "\n" not in str(caught.value)


def test_captions_of_sdxl_must_fit_as_well(tmp_path):
    folder = write(tmp_path, PUBLISHED["stable-diffusion-xl-base-1.0"])
    change(folder, "text_encoder_2/config.json", projection_dim=768)
    with pytest.raises(ValueError, match="takes 2816 added numbers, pooled text and size ids are 2304"):
        describe(folder)


def test_the_index_decides_which_text_encoder_is_made(folder):
    change(folder, "text_encoder/config.json", architectures=None)
    assert describe(folder).text_encoders["text_encoder"]["architectures"] == ["CLIPTextModel"]


def test_the_index_decides_which_scheduler_is_made(folder):
    change(folder, "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    found = describe(folder)
    assert (found.is_lcm, found.original_steps, found.unet["w_width"]) == (True, 50, None)


def test_a_unet_without_a_size_takes_that_of_the_autoencoder(folder):
    change(folder, "unet/config.json", sample_size=None)
    assert describe(folder).image_size == 512
    change(folder, "unet/config.json", sample_size=[32, 32])
    assert describe(folder).image_size == 256
