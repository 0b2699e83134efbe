"""Whole models in the original layout come and go bit for bit; names are those of published files."""

import functools
import hashlib
from dataclasses import asdict, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from golden import cases

from lcm_jax.models.autoencoder import AutoencoderConfig, autoencoder
from lcm_jax.models.clip_text import CLIP_TEXT, ClipTextConfig, clip_text
from lcm_jax.models.presets import AUTOENCODERS, UNETS
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key
from lcm_jax.weights.ldm_family import FAMILIES, detect
from lcm_jax.weights.ldm_unet import unet_sizes
from lcm_jax.weights.safetensors_file import SafetensorsFile, write_tree
from lcm_jax.weights.single_file import SingleFile, write

FULL = {  # the published models
    "sd1": {"unet": UNETS["sd15"], "vae": AUTOENCODERS["sd"], "text_encoder": CLIP_TEXT["sd15"]},
    "sd2": {"unet": UNETS["sd21"], "vae": AUTOENCODERS["sd"], "text_encoder": CLIP_TEXT["sd21"]},
    "sdxl": {
        "unet": UNETS["sdxl"],
        "vae": AUTOENCODERS["sdxl"],
        "text_encoder": CLIP_TEXT["sd15"],
        "text_encoder_2": CLIP_TEXT["sdxl2"],
    },
}
_CLIP = ClipTextConfig(width=8, layers=2, heads=1, inner=24, vocabulary=50, positions=7)
_OPENCLIP = replace(_CLIP, layers=3, hidden_act="gelu")
_VAE = replace(cases.AUTOENCODERS["kl"][0], force_upcast=True)
TINY = {
    "sd1": {"unet": cases.UNETS["sd15"][0], "vae": _VAE, "text_encoder": _CLIP},
    "sd2": {"unet": cases.UNETS["sd21"][0], "vae": _VAE, "text_encoder": _OPENCLIP},
    "sdxl": {
        "unet": cases.UNETS["sdxl"][0],
        "vae": replace(_VAE, scale=0.13025),
        "text_encoder": _CLIP,
        "text_encoder_2": replace(_OPENCLIP, projection=12),
    },
}
BUILD = {UNetConfig: unet, AutoencoderConfig: autoencoder, ClipTextConfig: clip_text}
COMPONENTS = [(family, name) for family, parts in FULL.items() for name in parts]

# Names in published files and here.
KNOWN = {
    ("sd1", "unet"): """
model.diffusion_model.time_embed.0.weight time_embedding.linear_1.weight
model.diffusion_model.time_embed.2.bias time_embedding.linear_2.bias
model.diffusion_model.input_blocks.0.0.weight conv_in.weight
model.diffusion_model.input_blocks.1.0.in_layers.0.weight down_blocks.0.resnets.0.norm1.weight
model.diffusion_model.input_blocks.1.0.emb_layers.1.bias down_blocks.0.resnets.0.time_emb_proj.bias
model.diffusion_model.input_blocks.2.1.proj_in.weight down_blocks.0.attentions.1.proj_in.weight
model.diffusion_model.input_blocks.3.0.op.weight down_blocks.0.downsamplers.0.conv.weight
model.diffusion_model.input_blocks.4.0.skip_connection.weight down_blocks.1.resnets.0.conv_shortcut.weight
model.diffusion_model.input_blocks.11.0.out_layers.3.weight down_blocks.3.resnets.1.conv2.weight
model.diffusion_model.middle_block.0.in_layers.2.weight mid_block.resnets.0.conv1.weight
model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight \
mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight
model.diffusion_model.middle_block.2.out_layers.0.weight mid_block.resnets.1.norm2.weight
model.diffusion_model.output_blocks.2.1.conv.weight up_blocks.0.upsamplers.0.conv.weight
model.diffusion_model.output_blocks.5.2.conv.bias up_blocks.1.upsamplers.0.conv.bias
model.diffusion_model.output_blocks.11.0.skip_connection.weight up_blocks.3.resnets.2.conv_shortcut.weight
model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.weight \
up_blocks.3.attentions.2.transformer_blocks.0.ff.net.0.proj.weight
model.diffusion_model.out.0.weight conv_norm_out.weight
model.diffusion_model.out.2.bias conv_out.bias""",
    ("sd2", "unet"): """
model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight \
down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k.weight
model.diffusion_model.output_blocks.8.2.conv.weight up_blocks.2.upsamplers.0.conv.weight""",
    ("sdxl", "unet"): """
model.diffusion_model.label_emb.0.0.weight add_embedding.linear_1.weight
model.diffusion_model.label_emb.0.2.bias add_embedding.linear_2.bias
model.diffusion_model.input_blocks.4.1.transformer_blocks.1.norm3.weight \
down_blocks.1.attentions.0.transformer_blocks.1.norm3.weight
model.diffusion_model.input_blocks.6.0.op.weight down_blocks.1.downsamplers.0.conv.weight
model.diffusion_model.middle_block.1.transformer_blocks.9.attn1.to_out.0.bias \
mid_block.attentions.0.transformer_blocks.9.attn1.to_out.0.bias
model.diffusion_model.output_blocks.2.2.conv.weight up_blocks.0.upsamplers.0.conv.weight
model.diffusion_model.output_blocks.8.0.in_layers.2.weight up_blocks.2.resnets.2.conv1.weight""",
    ("sd1", "vae"): """
first_stage_model.quant_conv.weight quant_conv.weight
first_stage_model.post_quant_conv.bias post_quant_conv.bias
first_stage_model.encoder.conv_in.weight encoder.conv_in.weight
first_stage_model.encoder.down.0.block.1.norm2.weight encoder.down_blocks.0.resnets.1.norm2.weight
first_stage_model.encoder.down.1.block.0.nin_shortcut.weight encoder.down_blocks.1.resnets.0.conv_shortcut.weight
first_stage_model.encoder.down.2.downsample.conv.weight encoder.down_blocks.2.downsamplers.0.conv.weight
first_stage_model.encoder.mid.block_1.conv1.weight encoder.mid_block.resnets.0.conv1.weight
first_stage_model.encoder.mid.attn_1.norm.weight encoder.mid_block.attentions.0.group_norm.weight
first_stage_model.encoder.norm_out.bias encoder.conv_norm_out.bias
first_stage_model.decoder.mid.attn_1.q.weight decoder.mid_block.attentions.0.to_q.weight
first_stage_model.decoder.mid.attn_1.k.bias decoder.mid_block.attentions.0.to_k.bias
first_stage_model.decoder.mid.attn_1.v.weight decoder.mid_block.attentions.0.to_v.weight
first_stage_model.decoder.mid.attn_1.proj_out.weight decoder.mid_block.attentions.0.to_out.0.weight
first_stage_model.decoder.mid.block_2.norm1.weight decoder.mid_block.resnets.1.norm1.weight
first_stage_model.decoder.up.3.block.0.conv1.weight decoder.up_blocks.0.resnets.0.conv1.weight
first_stage_model.decoder.up.0.block.2.conv2.bias decoder.up_blocks.3.resnets.2.conv2.bias
first_stage_model.decoder.up.1.upsample.conv.weight decoder.up_blocks.2.upsamplers.0.conv.weight
first_stage_model.decoder.up.0.block.0.nin_shortcut.bias decoder.up_blocks.3.resnets.0.conv_shortcut.bias""",
    ("sd1", "text_encoder"): """
cond_stage_model.transformer.text_model.embeddings.token_embedding.weight \
text_model.embeddings.token_embedding.weight
cond_stage_model.transformer.text_model.encoder.layers.11.self_attn.q_proj.bias \
text_model.encoder.layers.11.self_attn.q_proj.bias
cond_stage_model.transformer.text_model.final_layer_norm.weight text_model.final_layer_norm.weight""",
    ("sdxl", "text_encoder"): """
conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight \
text_model.encoder.layers.0.mlp.fc1.weight""",
    ("sd2", "text_encoder"): """
cond_stage_model.model.token_embedding.weight text_model.embeddings.token_embedding.weight
cond_stage_model.model.positional_embedding text_model.embeddings.position_embedding.weight
cond_stage_model.model.ln_final.bias text_model.final_layer_norm.bias
cond_stage_model.model.transformer.resblocks.22.ln_1.weight text_model.encoder.layers.22.layer_norm1.weight
cond_stage_model.model.transformer.resblocks.0.ln_2.bias text_model.encoder.layers.0.layer_norm2.bias
cond_stage_model.model.transformer.resblocks.5.attn.out_proj.weight \
text_model.encoder.layers.5.self_attn.out_proj.weight
cond_stage_model.model.transformer.resblocks.7.mlp.c_fc.weight text_model.encoder.layers.7.mlp.fc1.weight
cond_stage_model.model.transformer.resblocks.7.mlp.c_proj.bias text_model.encoder.layers.7.mlp.fc2.bias
cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight \
text_model.encoder.layers.3.self_attn.q_proj.weight
cond_stage_model.model.transformer.resblocks.3.attn.in_proj_weight \
text_model.encoder.layers.3.self_attn.k_proj.weight
cond_stage_model.model.transformer.resblocks.3.attn.in_proj_bias text_model.encoder.layers.3.self_attn.v_proj.bias""",
    ("sdxl", "text_encoder_2"): """
conditioner.embedders.1.model.text_projection text_projection.weight
conditioner.embedders.1.model.transformer.resblocks.31.mlp.c_proj.bias text_model.encoder.layers.31.mlp.fc2.bias""",
}


@functools.cache
def shapes(config):
    """Keys and shapes of a network in PyTorch's layout."""
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    flat = flatten(BUILD[type(config)](config).abstract())
    return {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}


def entries(family, name, sizes):
    part = FAMILIES[family][name]
    return [entry._replace(original=part.prefix + entry.original) for entry in part.entries(sizes, ())]


def original(family, name, ours):
    """Names and shapes of a component in the file."""
    blank = {key: np.broadcast_to(np.int8(0), shape) for key, shape in ours.items()}
    found = entries(family, name, FAMILIES[family][name].sizes(ours))
    return {e.original: e.form.join([blank[key] for key in e.ours]).shape for e in found}


def tensors(family, dtype=np.float32):
    """A small model's components in PyTorch's layout."""
    parts = {name: cases.fill(shapes(config)) for name, config in TINY[family].items()}
    return {name: {key: x.astype(dtype) for key, x in part.items()} for name, part in parts.items()}


def same(found, wanted):
    assert set(found) == set(wanted)
    for key in wanted:
        assert found[key].dtype == wanted[key].dtype and found[key].flags.c_contiguous, key
        np.testing.assert_array_equal(found[key], wanted[key], err_msg=key)


def raw(path, tensors):
    """A file of any names."""
    tree = {}
    for key, value in tensors.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    write_tree(path, tree)
    return path


@pytest.fixture(scope="module", params=TINY)
def written(request, tmp_path_factory):
    """family, the components that went in, the file"""
    family = request.param
    path = tmp_path_factory.mktemp(family) / "model.safetensors"
    write(path, tensors(family), family)
    return family, tensors(family), path


@pytest.mark.parametrize("family, name", COMPONENTS)
def test_each_tensor_of_published_models_has_one_place(family, name):
    found = entries(family, name, asdict(FULL[family][name]))
    ours = [key for entry in found for key in entry.ours]
    assert len({entry.original for entry in found}) == len(found)
    assert len(set(ours)) == len(ours)


@pytest.mark.parametrize("family, name", KNOWN)
def test_known_names(family, name):
    found = {(e.original, key) for e in entries(family, name, asdict(FULL[family][name])) for key in e.ours}
    known = {tuple(line.split()) for line in KNOWN[family, name].strip().split("\n")}
    assert known - found == set()


def test_a_file_gives_back_what_was_written(written):
    family, parts, path = written
    file = SingleFile(path)
    assert list(file) == list(parts) == list(file.description.components)
    for name, wanted in parts.items():
        same(file[name], wanted)
        assert {key: file[name].shape(key) for key in file[name]} == {k: x.shape for k, x in wanted.items()}


def test_the_file_has_the_original_layouts(written):
    """1x1 convolutions in the autoencoder's attention, joined q, k, v and a transposed projection in OpenCLIP."""
    family, parts, path = written
    file = SafetensorsFile(path)
    query = parts["vae"]["encoder.mid_block.attentions.0.to_q.weight"]
    np.testing.assert_array_equal(file["first_stage_model.encoder.mid.attn_1.q.weight"], query[:, :, None, None])
    if family == "sd1":
        return
    name = "text_encoder" if family == "sd2" else "text_encoder_2"
    prefix, text = FAMILIES[family][name].prefix, parts[name]
    joined = np.concatenate([text[f"text_model.encoder.layers.1.self_attn.{x}_proj.weight"] for x in "qkv"])
    np.testing.assert_array_equal(file[f"{prefix}transformer.resblocks.1.attn.in_proj_weight"], joined)
    if family == "sdxl":
        np.testing.assert_array_equal(file[f"{prefix}text_projection"], text["text_projection.weight"].T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("family", TINY)
def test_half_precision_stays_as_stored(tmp_path, family, dtype):
    path, again, parts = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tensors(family, dtype)
    write(path, parts, family)
    file = SingleFile(path)
    for name, wanted in parts.items():
        same(file[name], wanted)
    write(again, file, family)
    assert again.read_bytes() == path.read_bytes()


def test_networks_are_filled_and_written_back(written, tmp_path):
    """From the file through our parameters and back: the same bytes."""
    family, _, path = written
    file, parts = SingleFile(path), {}
    for name, config in TINY[family].items():
        heads = {"heads": config.heads} if hasattr(config, "heads") else {}
        groups = {"norm_groups": config.norm_groups} if hasattr(config, "norm_groups") else {}
        times = {"added_time_width": config.added_time_width} if name == "unet" else {}
        told = type(config)(**{**file[name].sizes, **heads, **groups, **times})
        assert told == config
        parts[name] = to_torch(from_torch(file[name], BUILD[type(told)](told).abstract()))
    write(tmp_path / "again.safetensors", parts, family)
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_consistency_model_keeps_its_map_of_w(tmp_path):
    parts = {"unet": cases.fill(shapes(cases.UNETS["lcm"][0]))}
    write(tmp_path / "lcm.safetensors", parts, "sd1")
    key = "model.diffusion_model.time_embedding.cond_proj.weight"
    np.testing.assert_array_equal(
        SafetensorsFile(tmp_path / "lcm.safetensors")[key], parts["unet"]["time_embedding.cond_proj.weight"]
    )
    file = SingleFile(tmp_path / "lcm.safetensors")
    assert file.description.components == ("unet",) and file["unet"].sizes["w_width"] == 12
    same(file["unet"], parts["unet"])
    with pytest.raises(KeyError, match="lcm.safetensors holds no vae; it has unet"):
        file["vae"]


def test_tensors_are_read_when_asked_for(written, monkeypatch):
    read, get = [], SafetensorsFile.__getitem__
    monkeypatch.setattr(SafetensorsFile, "__getitem__", lambda self, key: read.append(key) or get(self, key))
    family, parts, path = written
    file = SingleFile(path)
    assert all(file[name].sizes and file[name].shape(key) for name in parts for key in parts[name])
    # Checks of types, which only tests have, look at the first tensor of a mapping.
    assert len(set(read)) <= len(parts)
    network = file["unet"]
    del read[:]
    network["conv_in.weight"]
    assert read == ["model.diffusion_model.input_blocks.0.0.weight"]


def test_a_part_does_not_keep_the_whole_in_memory(tmp_path):
    write(tmp_path / "m.safetensors", tensors("sd2"), "sd2")
    text = SingleFile(tmp_path / "m.safetensors")["text_encoder"]
    assert text["text_model.encoder.layers.0.self_attn.k_proj.weight"].base is None


def test_what_no_network_has_is_written_and_passed_over(tmp_path):
    """Averages, tables, buffers; of SD 2.x also the projection and the 24th layer."""
    family, parts = "sd2", tensors("sd2")
    prefix = "cond_stage_model.model."
    extra = {
        "model_ema.decay": np.float32(0.9999),
        "model_ema.diffusion_modelinput_blocks00weight": np.ones(3, np.float32),
        "alphas_cumprod": np.linspace(1, 0, 5, dtype=np.float32),
        "sqrt_recipm1_alphas_cumprod": np.ones(5, np.float32),
        "posterior_mean_coef1": np.ones(5, np.float32),
        "betas": np.ones(5, np.float32),
        "first_stage_model.loss.logvar": np.float32(0),
        f"{prefix}text_projection": np.ones((8, 8), np.float16),
        f"{prefix}logit_scale": np.float32(4.6),
        f"{prefix}transformer.resblocks.23.ln_1.weight": np.ones(8, np.float32),
    }
    write(tmp_path / "m.safetensors", parts, family, extra, {"modelspec.prediction_type": "v"})
    file = SingleFile(tmp_path / "m.safetensors")
    assert file.description.kind == "v"
    for name, wanted in parts.items():
        same(file[name], wanted)
    write(tmp_path / "again.safetensors", file, family, extra, file.metadata)
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "m.safetensors").read_bytes()
    stored = SafetensorsFile(tmp_path / "m.safetensors")
    same({key: stored[key] for key in extra}, {key: np.asarray(value) for key, value in extra.items()})


@pytest.mark.parametrize("family, encoder", [("sd1", "cond_stage_model"), ("sdxl", "conditioner.embedders.0")])
@pytest.mark.parametrize("name", ["text_projection", "transformer.text_projection.weight"])
def test_a_projection_that_is_not_read_is_passed_over(family, encoder, name, tmp_path):
    parts, extra = tensors(family), {f"{encoder}.{name}": np.ones((8, 8), np.float16)}
    write(tmp_path / "m.safetensors", parts, family, extra, {})
    file = SingleFile(tmp_path / "m.safetensors")
    for part, wanted in parts.items():
        same(file[part], wanted)


def test_names_of_older_writers_are_read(written, tmp_path):
    """Without "text_model." (models derived from NovelAI's); a text projection saved as a linear map's weight."""
    family, parts, path = written
    file, renamed = SafetensorsFile(path), {}
    for key in file:
        if key.endswith("model.text_projection"):
            renamed[f"{key}.weight"] = np.ascontiguousarray(file[key].T)
        else:
            renamed[key.replace("stage_model.transformer.text_model.", "stage_model.transformer.")] = file[key]
    older = SingleFile(raw(tmp_path / "older.safetensors", renamed))
    for name, wanted in parts.items():
        same(older[name], wanted)
        assert older[name].sizes == SingleFile(path)[name].sizes


@pytest.mark.parametrize(
    "names, what",
    [
        (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"], "SD 3"),
        (["double_blocks.0.img_attn.norm.key_norm.scale"], "Flux"),
        (["model.diffusion_model.double_blocks.0.img_attn.proj.bias"], "Flux"),
        (["conditioner.embedders.0.model.text_projection"], "the SDXL refiner"),
        (["edm_mean", "edm_std"], "Playground 2.5"),
        (["edm_vpred.sigma_max"], "CosXL"),
        (["model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight"], "Stable Video Diffusion"),
        (["low_scale_model.betas"], "an upscaler"),
        (["control_model.time_embed.0.weight"], "a ControlNet"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in.alpha"], "a LoRA"),
        (["down_blocks.0.resnets.0.norm1.weight"], "layout of diffusers' folders"),
        (["text_model.final_layer_norm.weight"], "a text encoder alone"),
        (["decoder.conv_in.weight"], "an autoencoder alone"),
        (["something.else"], "no U-Net .* but something.else"),
    ],
)
def test_foreign_files_are_refused_by_name(tmp_path, names, what):
    path = raw(tmp_path / "foreign.safetensors", {name: np.ones((2, 2), np.float32) for name in names})
    with pytest.raises(ValueError, match=f"foreign.safetensors: .*{what}.*; give a whole text-to-image") as caught:
        SingleFile(path)
    assert "\n" not in str(caught.value)


def test_what_a_file_says_of_its_prediction():
    there = original("sd2", "unet", shapes(TINY["sd2"]["unet"]))
    assert detect(there).kind is None and not detect(there).zero_terminal_snr
    assert detect(there, {"modelspec.prediction_type": "epsilon"}).kind == "eps"
    marked = detect({**there, "v_pred": (0,), "ztsnr": (0,)})
    assert (marked.kind, marked.zero_terminal_snr) == ("v", True)


@pytest.mark.parametrize("channels, use", [(9, "inpainting"), (8, "editing"), (6, "something else")])
def test_a_unet_of_other_inputs_is_refused(channels, use):
    there = original("sd1", "unet", shapes(TINY["sd1"]["unet"]))
    key = "model.diffusion_model.input_blocks.0.0.weight"
    with pytest.raises(ValueError, match=f"U-Net takes {channels} channels, for {use}"):
        detect({**there, key: (16, channels, 3, 3)})


def test_damaged_files_are_named(written, tmp_path):
    family, _, good = written
    stored = {key: SafetensorsFile(good)[key] for key in SafetensorsFile(good)}
    path = tmp_path / "bad.safetensors"

    def refuse(tensors, match):
        with pytest.raises(ValueError, match=match) as caught:
            SingleFile(raw(path, tensors))
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)

    key = "model.diffusion_model.output_blocks.1.0.in_layers.2.weight"
    refuse({k: x for k, x in stored.items() if k != key}, "unet is incomplete .* 1 missing: output_blocks.1.0")
    refuse({k: x for k, x in stored.items() if "middle_block.1" not in k}, "U-Net lacks middle_block.1")
    refuse({**stored, "first_stage_model.odd": np.ones(1)}, "vae is incomplete .* 1 unexpected: odd")
    refuse({**stored, **{f"x{i}": np.ones(1) for i in range(9)}}, f"9 names .* family {family}: x0, .* and 3 more")
    refuse({k: x for k, x in stored.items() if "post_quant_conv" not in k}, "autoencoder lacks post_quant_conv.weight")
    refuse({k: x for k, x in stored.items() if "token_embedding" not in k}, "text encoder lacks")
    key = "first_stage_model.encoder.mid.attn_1.q.weight"
    refuse({**stored, key: np.ones((2, 2, 3, 3))}, r"encoder.mid.attn_1.q.weight has the shape \(2, 2, 3, 3\)")

    path.write_bytes(good.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bad.safetensors is no complete safetensors file"):
        SingleFile(path)
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        SingleFile(tmp_path / "none.safetensors")


def test_what_would_not_come_back_is_not_written(tmp_path):
    path, parts = tmp_path / "m.safetensors", tensors("sd2")

    def refuse(match, components=parts, family="sd2", unused=None):
        with pytest.raises(ValueError, match=match):
            write(path, components, family, unused)

    refuse("unknown family 'sd3'; choose one of sd1, sd2, sdxl", family="sd3")
    refuse("sd2 has no component 'text_encoder_2'", {**parts, "text_encoder_2": parts["text_encoder"]})
    refuse("unet is incomplete .* 1 unexpected: odd", {**parts, "unet": {**parts["unet"], "odd": np.ones(1)}})
    refuse("unet is incomplete .* 1 missing: conv_out.bias", {"unet": _less(parts["unet"], "conv_out.bias")})
    refuse("the U-Net lacks conv_out.weight", {"unet": _less(parts["unet"], "conv_out.weight")})
    refuse("U-Net is one of sd2, not of sd1", {"unet": parts["unet"]}, "sd1")
    refuse("it has no U-Net .* but first_stage_model.decoder.conv_in.bias, .* more;", {"vae": parts["vae"]})
    refuse("it has no U-Net .* but nothing;", {})
    refuse("unused tensors cannot be named v_pred.x", unused={"v_pred.x": np.ones(1)})
    text = parts["text_encoder"]
    projected = {**text, "text_projection.weight": np.ones((8, 8), np.float32)}
    refuse("pass over cond_stage_model.model.text_projection: leave", {**parts, "text_encoder": projected})
    key = "text_model.encoder.layers.0.self_attn.k_proj.bias"
    refuse("k_proj.bias, .* differ in shape or type", {**parts, "text_encoder": {**text, key: text[key].astype("f2")}})
    assert list(tmp_path.iterdir()) == []


def _less(tensors, key):
    return {k: x for k, x in tensors.items() if k != key}


def test_sizes_do_not_need_square_numbers_of_blocks():
    """Three residual blocks a level, one level that alone attends, wide before narrow."""
    config = UNetConfig((32, 16), (True, False), (2, 3), (8, 8), 3, context_width=8, norm_groups=8)
    there = original("sd1", "unet", shapes(config))
    plain = {key.removeprefix("model.diffusion_model."): shape for key, shape in there.items()}
    assert UNetConfig(**unet_sizes(plain), norm_groups=8) == config


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    plain = Path.open
    full = lambda *a, **kw: open("/dev/full", "wb", buffering=0) if "wb" in a else plain(*a, **kw)  # noqa: E731
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="m.safetensors could not be written .*No space left.*make room"):
        write(tmp_path / "m.safetensors", tensors("sd1"), "sd1")
    assert not list(tmp_path.iterdir())


# Against diffusers and transformers themselves, where they are installed.


@pytest.fixture(scope="module")
def converters():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    return pytest.importorskip("diffusers.loaders.single_file_utils")


@functools.cache
def published(config):
    """The published network, of no memory, and its keys and shapes as they are on disk."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        if isinstance(config, ClipTextConfig):
            net = text_net(config)
        elif isinstance(config, AutoencoderConfig):
            net = AutoencoderKL(**cases.PUBLISHED_AUTOENCODERS["sd"])
        else:
            name = next(name for name, preset in UNETS.items() if preset == config)
            net = UNet2DConditionModel(**cases.PUBLISHED_UNETS[name])
    bare = isinstance(config, ClipTextConfig) and not config.projection  # transformers drops it in memory
    return net, {f"{'text_model.' * bare}{key}": tuple(x.shape) for key, x in net.state_dict().items()}


def text_net(config):
    import transformers

    words = transformers.CLIPTextConfig(
        hidden_size=config.width,
        intermediate_size=config.inner,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        hidden_act=config.hidden_act,
        vocab_size=config.vocabulary,
        max_position_embeddings=config.positions,
        projection_dim=config.projection or 512,
    )
    return (transformers.CLIPTextModelWithProjection if config.projection else transformers.CLIPTextModel)(words)


def convert(converters, family, name, there, net):
    """diffusers' own reading of a component."""
    if name == "unet":
        return converters.convert_ldm_unet_checkpoint(there, net.config)
    if name == "vae":
        return converters.convert_ldm_vae_checkpoint(there, net.config)
    prefix = FAMILIES[family][name].prefix
    if prefix.endswith("transformer."):
        return converters.convert_ldm_clip_checkpoint(there)
    return converters.convert_open_clip_checkpoint(net, there, prefix)


@pytest.mark.parametrize("family, name", COMPONENTS)
def test_published_models_go_there_and_back(converters, family, name):
    """All their keys and shapes, through our names and back by ours and by diffusers'; the preset is told."""
    import torch

    config, part = FULL[family][name], FAMILIES[family][name]
    net, ours = published(config)
    found = entries(family, name, asdict(config))
    assert sorted(key for entry in found for key in entry.ours) == sorted(ours)
    there = original(family, name, ours)
    back = [pair for entry in found for pair in zip(entry.ours, entry.shapes(there[entry.original]), strict=True)]
    assert dict(back) == ours

    plain = {key.removeprefix(part.prefix): shape for key, shape in there.items()}
    assert type(config)(**part.sizes(ours)) == type(config)(**part.sizes(plain)) == config
    blank = {key: torch.empty(shape, device="meta") for key, shape in there.items()}
    theirs = convert(converters, family, name, blank, net)
    assert {key: tuple(x.shape) for key, x in theirs.items()} == ours


def fingerprint(named):
    lines = sorted([*named, *(f"{key}:{'_'.join(map(str, shape))}" for key, shape in named.items())])
    return hashlib.md5(",".join(lines).encode()).hexdigest()


def test_names_and_shapes_are_those_of_published_files(converters):
    """DiffSynth-Studio knows SD 1.5, SDXL base and SDXL Turbo, whole or in parts, by these fingerprints."""
    there = {
        family: {name: original(family, name, published(config)[1]) for name, config in FULL[family].items()}
        for family in FULL
    }
    assert fingerprint(there["sd1"]["unet"]) == "3926bf373b39a67eeafd7901478a47a7"
    assert fingerprint(there["sd1"]["vae"]) == "d0c89e55c5a57cf3981def0cb1c9e65a"
    assert fingerprint(there["sdxl"]["unet"]) == "298997b403a4245c04102c9f36aac348"
    ids = "text_model.embeddings.position_ids"
    whole = {family: {k: s for part in parts.values() for k, s in part.items()} for family, parts in there.items()}
    sd15 = {**whole["sd1"], f"cond_stage_model.transformer.{ids}": (1, 77)}
    assert fingerprint(sd15) == "03343c606f16d834d6411d0902b53636"
    scale = {**whole["sdxl"], "conditioner.embedders.1.model.logit_scale": ()}
    base = {**scale, f"conditioner.embedders.0.transformer.{ids}": (1, 77)}
    assert fingerprint(base) == "4cf64a799d04260df438c6f33c9a047e"
    turbo = {**scale, "denoiser.sigmas": (1000,)}
    assert fingerprint(turbo) == "d9b008a867c498ab12ad24042eff8e3f"

    for family, named in (("sd1", sd15), ("sd2", whole["sd2"]), ("sdxl", base), ("sdxl", turbo)):
        told = detect(named)
        assert (told.family, told.components, told.kind) == (family, tuple(FULL[family]), None)


@pytest.mark.parametrize("family", TINY)
def test_diffusers_reads_the_same_numbers(converters, family, tmp_path):
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    write(tmp_path / "m.safetensors", tensors(family), family)
    stored = SafetensorsFile(tmp_path / "m.safetensors")
    nets = {
        "unet": UNet2DConditionModel(**cases.UNETS[{"sd1": "sd15", "sd2": "sd21"}.get(family, family)][1]),
        "vae": AutoencoderKL(**cases.AUTOENCODERS["kl"][1]),
    }
    for name, wanted in tensors(family).items():
        prefix = FAMILIES[family][name].prefix
        there = {key: torch.tensor(stored[key]) for key in stored if key.startswith(prefix)}
        net = nets.get(name) or text_net(TINY[family][name])
        found = convert(converters, family, name, there, net)
        same({key: np.ascontiguousarray(x.numpy()) for key, x in found.items()}, wanted)
