"""Sizes come out of diffusers' configs as published, go back as it writes them, and the rest is named."""

import json
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from published_configs import PUBLISHED

from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.autoencoder_tiny import TinyAutoencoderConfig
from lcm_jax.models.clip_text import CLIP_TEXT, clip_text, clip_text_config
from lcm_jax.models.presets import AUTOENCODERS, UNETS
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import flatten, torch_key
from lcm_jax.weights.diffusers_config import (
    autoencoder_config,
    autoencoder_factor,
    autoencoder_sizes,
    text_encoder_config,
    unet_config,
    unet_sizes,
)

SD15, SD21 = PUBLISHED["stable-diffusion-v1-5"], PUBLISHED["stable-diffusion-2-1"]
SDXL, LCM = PUBLISHED["stable-diffusion-xl-base-1.0"], PUBLISHED["LCM_Dreamshaper_v7"]
PRESETS = {
    "stable-diffusion-v1-5": UNETS["sd15"],
    "stable-diffusion-2-1-base": UNETS["sd21"],
    "stable-diffusion-2-1": UNETS["sd21"],
    "stable-diffusion-xl-base-1.0": UNETS["sdxl"],
    "LCM_Dreamshaper_v7": replace(UNETS["sd15"], w_width=256),
}
ODD = UNetConfig(  # nothing at its default
    channels=(32, 64, 96),
    attention=(True, False, True),
    depth=(3, 1, 2),
    heads=(2, 4, 8),
    layers=3,
    latent_channels=5,
    out_channels=7,
    context_width=24,
    linear_projection=True,
    w_width=12,
    added_width=58,
    added_time_width=8,
    norm_groups=16,
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_unets_are_the_presets(name):
    found = UNetConfig(**unet_sizes(PUBLISHED[name]["unet"]))
    assert replace(found, upcast_attention=False) == PRESETS[name]
    assert found.upcast_attention == (name == "stable-diffusion-2-1")


def test_published_autoencoders_are_the_presets():
    assert AutoencoderConfig(**autoencoder_sizes(SD15["vae"])) == AUTOENCODERS["sd"]  # it names no scaling_factor
    assert AutoencoderConfig(**autoencoder_sizes(LCM["vae"])) == AUTOENCODERS["sd"]
    assert AutoencoderConfig(**autoencoder_sizes(SDXL["vae"])) == AUTOENCODERS["sdxl"]


def test_keys_left_out_have_the_values_diffusers_takes():
    assert UNetConfig(**unet_sizes({})) == replace(UNETS["sd15"], context_width=1280)
    assert AutoencoderConfig(**autoencoder_sizes({})) == AutoencoderConfig(channels=(64,), layers=1, force_upcast=True)


@pytest.mark.parametrize("sizes", [*UNETS.values(), ODD])
def test_unet_sizes_survive_the_way_there_and_back(sizes):
    config = json.loads(json.dumps(unet_config(asdict(sizes), 64)))
    assert UNetConfig(**unet_sizes(config)) == sizes


def test_a_preset_goes_back_to_its_published_config():
    for name, sizes in PRESETS.items():
        published = PUBLISHED[name]["unet"]
        written = unet_config(asdict(sizes), published["sample_size"])
        shared = published.keys() & written.keys()
        assert {"attention_head_dim", "block_out_channels", "sample_size"} < shared
        assert {key: written[key] for key in shared} == {key: published[key] for key in shared}


@pytest.mark.parametrize("force", [False, True])
def test_autoencoder_sizes_survive_the_way_there_and_back(force):
    sizes = AutoencoderConfig((32, 64), 3, latent_channels=6, norm_groups=16, scale=0.5, force_upcast=force)
    config = json.loads(json.dumps(autoencoder_config(asdict(sizes), 64)))
    assert AutoencoderConfig(**autoencoder_sizes(config)) == sizes
    assert config["sample_size"] == 64 and config["force_upcast"] is force


def test_folded_pixels_have_no_counterpart():
    with pytest.raises(ValueError, match="autoencoder.patch is 4: diffusers' AutoencoderKL only knows 1"):
        autoencoder_config(asdict(AUTOENCODERS["emoji"]), 64)


def test_a_shift_has_no_counterpart():
    with pytest.raises(ValueError, match="autoencoder.shift is 0.5: diffusers' Stable Diffusion only knows 0"):
        autoencoder_config(asdict(AutoencoderConfig(shift=0.5)), 64)


TAESD = {  # as published
    "_class_name": "AutoencoderTiny",
    "_diffusers_version": "0.20.0.dev0",
    "act_fn": "relu",
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
ODD_TINY = TinyAutoencoderConfig(8, (1, 2, 1), (2, 1, 3), latent_channels=6, scale=1.5, shift=0.25)


def test_the_published_tiny_autoencoder_is_the_preset():
    assert TinyAutoencoderConfig(**autoencoder_sizes(TAESD)) == AUTOENCODERS["taesd"]
    assert autoencoder_sizes(TAESD) == autoencoder_sizes({"_class_name": "AutoencoderTiny"})  # all are defaults
    assert autoencoder_factor(autoencoder_sizes(TAESD)) == 8 == autoencoder_factor(asdict(AUTOENCODERS["sd"]))
    assert autoencoder_factor(asdict(AUTOENCODERS["emoji"])) == AUTOENCODERS["emoji"].factor


@pytest.mark.parametrize("sizes", [AUTOENCODERS["taesd"], AUTOENCODERS["taesd3"], ODD_TINY])
def test_tiny_autoencoder_sizes_survive_the_way_there_and_back(sizes):
    config = json.loads(json.dumps(autoencoder_config(asdict(sizes), 64)))
    assert TinyAutoencoderConfig(**autoencoder_sizes(config)) == sizes


@pytest.mark.parametrize(
    "key, value",
    [
        ("encoder_block_out_channels", [64, 32, 64, 64]),
        ("decoder_block_out_channels", [32, 32, 32, 32]),
        ("num_encoder_blocks", []),
        ("num_decoder_blocks", [3, 3, 1]),
        ("upsampling_scaling_factor", 4),
        ("act_fn", "silu"),
        ("scaling_factor", None),
    ],
)
def test_what_the_tiny_autoencoder_does_not_implement_is_named(key, value):
    with pytest.raises(ValueError) as caught:
        autoencoder_sizes({**TAESD, key: value})
    assert str(caught.value).startswith(f"vae/config.json has {key} = {value!r}, which is not supported")


@pytest.mark.parametrize("name", CLIP_TEXT)
def test_text_encoder_sizes_survive_the_way_there_and_back(name):
    sizes = replace(CLIP_TEXT[name], eos_token_id=49407)
    assert clip_text_config(json.loads(json.dumps(text_encoder_config(asdict(sizes))))) == sizes


@pytest.mark.parametrize("pipeline, part", [(SD15, "text_encoder"), (SD21, "text_encoder"), (SDXL, "text_encoder_2")])
def test_a_text_encoder_goes_back_to_its_published_config(pipeline, part):
    published = pipeline[part]
    written = text_encoder_config(asdict(clip_text_config(published)), "float16")
    shared = published.keys() & written.keys()
    assert {"architectures", "hidden_act", "num_hidden_layers"} <= shared
    free = set() if part == "text_encoder_2" else {"projection_dim"}  # of a map that is not there
    assert {key: written[key] for key in shared - free} == {key: published[key] for key in shared - free}


def test_an_int_and_a_list_of_equal_entries_are_the_same():
    spelled = {"attention_head_dim": [8] * 4, "layers_per_block": [2] * 4, "cross_attention_dim": [768] * 4}
    spelled |= {"transformer_layers_per_block": [1] * 4, "only_cross_attention": [False] * 4}
    assert unet_sizes({**SD15["unet"], **spelled}) == unet_sizes(SD15["unet"])


def test_other_channels_out_than_in_are_sizes_too():
    assert unet_sizes({**SD15["unet"], "in_channels": 9})["out_channels"] == 4


def test_what_averaging_and_precision_leave_behind_changes_nothing():
    notes = {"decay": 0.9999, "optimization_step": 1000, "power": 0.7, "act_fn": "swish"}
    assert unet_sizes({**SD15["unet"], **notes}) == unet_sizes(SD15["unet"])


def test_what_others_need_against_overflow_goes_back_to_them():
    found = unet_sizes({**SD15["unet"], "upcast_attention": True})
    assert found == {**unet_sizes(SD15["unet"]), "upcast_attention": True}
    assert unet_config(found, 64)["upcast_attention"] is True


@pytest.mark.parametrize(
    "key, value, supported",
    [
        ("_class_name", "ControlNetModel", "UNet2DConditionModel"),
        ("_class_name", "SD3Transformer2DModel", "UNet2DConditionModel"),
        ("down_block_types", ["DownEncoderBlock2D"] * 4, "CrossAttnDownBlock2D and DownBlock2D"),
        ("up_block_types", ["CrossAttnUpBlock2D"] * 4, "the mirror image of down_block_types"),
        ("mid_block_type", None, "'UNetMidBlock2DCrossAttn'"),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn", "'UNetMidBlock2DCrossAttn'"),
        ("block_out_channels", [320, 640], "a list of 4"),
        ("attention_head_dim", [5, 10, 20], "a list of 4"),
        ("transformer_layers_per_block", [[1], [2], [4], [4]], "a list of 4"),
        ("layers_per_block", [2, 2, 3, 3], "one positive whole number"),
        ("cross_attention_dim", None, "one positive whole number"),
        ("addition_embed_type", "text_image", "null or 'text_time'"),
        ("addition_embed_type", "text_time", "one positive whole number"),  # its widths are missing
        ("class_embed_type", "projection", "None"),
        ("num_class_embeds", 1000, "None"),
        ("only_cross_attention", [True, False, False, False], "False"),
        ("norm_eps", 1e-6, "1e-05"),
        ("dropout", 0.1, "0.0"),
        ("conv_in_kernel", 5, "3"),
        ("flip_sin_to_cos", False, "True"),
        ("freq_shift", 1, "0"),
        ("resnet_time_scale_shift", "scale_shift", "'default'"),
        ("time_embedding_dim", 640, "null, which is 1280"),
        ("attention_type", "gated", "'default'"),
        ("encoder_hid_dim", 4096, "None"),
        ("num_attention_heads", 8, "None"),
        ("time_cond_proj_dim", 0, "one positive whole number"),
    ],
)
def test_what_the_unet_does_not_implement_is_named(key, value, supported):
    with pytest.raises(ValueError) as caught:
        unet_sizes({**SD15["unet"], key: value}, "there/config.json")
    message, named = str(caught.value), key
    if (key, value) == ("addition_embed_type", "text_time"):
        named, value = "projection_class_embeddings_input_dim", None
    assert message.startswith(f"there/config.json has {named} = {value!r}, which is not supported")
    assert supported in message and "\n" not in message


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="unet/config.json has rotary = True, .* no such setting is known"):
        unet_sizes({**SD15["unet"], "rotary": True})


@pytest.mark.parametrize(
    "key, value",
    [
        ("_class_name", "AutoencoderKLWan"),
        ("down_block_types", ["AttnDownEncoderBlock2D"] * 4),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("block_out_channels", [128, 256]),
        ("shift_factor", "0.1159"),
        ("latents_mean", [0.1, 0.2, 0.3, 0.4]),
        ("use_quant_conv", False),
        ("mid_block_add_attention", False),
        ("in_channels", 4),
        ("act_fn", "gelu"),
        ("scaling_factor", None),
        ("compression", 2),
    ],
)
def test_what_the_autoencoder_does_not_implement_is_named(key, value):
    with pytest.raises(ValueError) as caught:
        autoencoder_sizes({**SD15["vae"], key: value})
    assert str(caught.value).startswith(f"vae/config.json has {key} = {value!r}, which is not supported")


def test_an_autoencoder_of_its_own_may_have_a_shift():
    sizes = AutoencoderConfig(**autoencoder_sizes({**SD15["vae"], "shift_factor": 0.1159}))
    assert sizes.shift == 0.1159


def test_the_explicit_spellings_of_no_shift_and_no_statistics_pass():
    explicit = {"shift_factor": None, "latents_mean": None, "latents_std": None, "use_quant_conv": True}
    assert autoencoder_sizes({**SD15["vae"], **explicit}) == autoencoder_sizes(SD15["vae"])


def torch_shapes(abstract):
    """Names and shapes as PyTorch has them; the last two dims of a kernel come first, swapped."""
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    flat = flatten(abstract)
    shapes = {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}
    assert len(shapes) == len(flat)  # no two leaves share a name
    return shapes


def test_tiny_autoencoders_are_covered_name_by_name():
    for sizes in (AUTOENCODERS["taesd"], ODD_TINY):
        settings, shapes = built("AutoencoderTiny", autoencoder_config(asdict(sizes), 64))
        assert torch_shapes(autoencoder(sizes).abstract()) == shapes
        assert (settings["scaling_factor"], settings["shift_factor"]) == (sizes.scale, sizes.shift)


def test_text_encoders_are_covered_name_by_name():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    for sizes in CLIP_TEXT.values():
        config = text_encoder_config(asdict(sizes))
        with torch.device("meta"):
            net = getattr(transformers, config["architectures"][0])(transformers.CLIPTextConfig(**config))
        theirs = {key: tuple(x.shape) for key, x in net.state_dict().items() if not key.endswith("position_ids")}
        short = lambda shapes: {key.removeprefix("text_model."): shape for key, shape in shapes.items()}
        assert short(torch_shapes(clip_text(sizes).abstract())) == short(theirs)


def built(cls, config):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        net = getattr(diffusers, cls).from_config(config)
    return dict(net.config), {key: tuple(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize("name", ["stable-diffusion-2-1", "stable-diffusion-xl-base-1.0", "LCM_Dreamshaper_v7"])
def test_full_size_unets_are_covered_name_by_name_both_ways(name):
    """What diffusers builds of the published file, of ours, and our own network: the same tensors."""
    published = PUBLISHED[name]["unet"]
    sizes = unet_sizes(published)
    settings, shapes = built("UNet2DConditionModel", published)
    again, shapes_again = built("UNet2DConditionModel", unet_config(sizes, published["sample_size"]))
    assert torch_shapes(unet(UNetConfig(**sizes)).abstract()) == shapes == shapes_again
    # Head counts and other settings leave no trace in shapes: compare what diffusers made of either file.
    free = ("upcast_attention", "_name_or_path", "_diffusers_version", "_use_default_values")
    strip = lambda config: {key: value for key, value in config.items() if key not in free}
    assert strip(again) == strip(settings)


def test_the_full_size_autoencoder_is_covered_name_by_name_both_ways():
    sizes = autoencoder_sizes(SDXL["vae"])
    settings, shapes = built("AutoencoderKL", SDXL["vae"])
    again, shapes_again = built("AutoencoderKL", autoencoder_config(sizes, 1024))
    assert torch_shapes(autoencoder(AutoencoderConfig(**sizes)).abstract()) == shapes == shapes_again
    assert {k: again[k] for k in again if k[0] != "_"} == {k: settings[k] for k in settings if k[0] != "_"}


def test_an_odd_unet_is_built_alike():
    _, shapes = built("UNet2DConditionModel", unet_config(asdict(ODD), 8))
    assert torch_shapes(unet(ODD).abstract()) == shapes
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(unet(ODD).abstract())) > 1e6
