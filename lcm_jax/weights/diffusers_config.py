"""Network sizes against the config.json of diffusers' U-Net and autoencoders and transformers' CLIP, both ways.

A config is read key by key: each is understood, or stands at the one value our networks implement, or is named.
(CLIP's is read by models.clip_text and written here.)
"""

from collections.abc import Mapping
from typing import Any

from lcm_jax.weights.diffusers_keys import Config, collapse, count, per_level, read, refuse, which_levels

# What diffusers takes for a key that a file leaves out; these keys become sizes.
_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 1280,
    "use_linear_projection": False,
    "upcast_attention": False,
    "norm_num_groups": 32,
    "time_cond_proj_dim": None,
    "time_embedding_dim": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
}
# The values our U-Net implements, the one written first; a list of equal entries counts as its entry.
_UNET_FIXED = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0.0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
# Any value will do: heads of another addition_embed_type; the record that diffusers' EMAModel leaves of its averaging.
_UNET_UNREAD = ("sample_size", "addition_embed_type_num_heads", "decay", "inv_gamma", "min_decay")
_UNET_UNREAD += ("optimization_step", "power", "update_after_step", "use_ema_warmup")
_ADDED_TIME_WIDTH = 256

_VAE = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "force_upcast": True,
}
_VAE_FIXED = {
    "act_fn": ("silu", "swish"),
    "in_channels": (3,),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "out_channels": (3,),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_VAE_UNREAD = ("sample_size",)

_TINY = {
    "encoder_block_out_channels": (64,) * 4,
    "decoder_block_out_channels": (64,) * 4,
    "num_encoder_blocks": (1, 3, 3, 3),
    "num_decoder_blocks": (3, 3, 3, 1),
    "latent_channels": 4,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
_TINY_FIXED = {
    "act_fn": ("relu",),
    "in_channels": (3,),
    "out_channels": (3,),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}
# A second spelling of the decoder's widths; how latents become bytes; what its class has no use for.
_TINY_UNREAD = ("block_out_channels", "latent_magnitude", "latent_shift", "force_upcast", "sample_size")


def unet_sizes(config: Config, source: str = "unet/config.json") -> dict[str, Any]:
    """Fields of models.unet.UNetConfig for the content of a U-Net's config.json.

    diffusers calls head counts attention_head_dim. Raises ValueError naming the key, its value and what is
    supported, for whatever our U-Net does not implement.
    """
    c = read(config, "UNet2DConditionModel", _UNET, _UNET_FIXED, _UNET_UNREAD, source)
    attention = which_levels(c, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D", source)
    if which_levels(c, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D", source) != attention[::-1]:
        refuse(source, "up_block_types", c["up_block_types"], "the mirror image of down_block_types")
    levels = len(attention)
    channels = per_level(c, "block_out_channels", levels, source)
    if c["time_embedding_dim"] not in (None, 4 * channels[0]):
        refuse(source, "time_embedding_dim", c["time_embedding_dim"], f"null, which is {4 * channels[0]}")
    if (added := c["addition_embed_type"]) not in (None, "text_time"):
        refuse(source, "addition_embed_type", added, "null or 'text_time'")
    inp, out = count(c, "in_channels", source), count(c, "out_channels", source)
    return {
        "channels": channels,
        "attention": attention,
        "depth": per_level(c, "transformer_layers_per_block", levels, source),
        "heads": per_level(c, "attention_head_dim", levels, source),
        "layers": count(c, "layers_per_block", source),
        "latent_channels": inp,
        "out_channels": None if out == inp else out,
        "context_width": count(c, "cross_attention_dim", source),
        "linear_projection": bool(c["use_linear_projection"]),
        "upcast_attention": bool(c["upcast_attention"]),
        "w_width": count(c, "time_cond_proj_dim", source) if c["time_cond_proj_dim"] is not None else None,
        "added_width": count(c, "projection_class_embeddings_input_dim", source) if added else None,
        "added_time_width": count(c, "addition_time_embed_dim", source) if added else _ADDED_TIME_WIDTH,
        "norm_groups": count(c, "norm_num_groups", source),
    }


def unet_config(sizes: Mapping[str, Any], sample_size: int) -> dict[str, Any]:
    """The config.json of which diffusers rebuilds the U-Net of these sizes, for latents of `sample_size` a side.

    `sizes` are those of `unet_sizes` (dataclasses.asdict of a UNetConfig will do).
    """
    added = sizes["added_width"]
    return {
        "_class_name": "UNet2DConditionModel",
        **{key: values[0] for key, values in _UNET_FIXED.items()},
        "sample_size": sample_size,
        "in_channels": sizes["latent_channels"],
        "out_channels": sizes["out_channels"] or sizes["latent_channels"],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in sizes["attention"]],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(sizes["attention"])],
        "block_out_channels": list(sizes["channels"]),
        "layers_per_block": sizes["layers"],
        "transformer_layers_per_block": collapse(list(sizes["depth"])),
        "attention_head_dim": collapse(list(sizes["heads"])),
        "cross_attention_dim": sizes["context_width"],
        "use_linear_projection": sizes["linear_projection"],
        "norm_num_groups": sizes["norm_groups"],
        "time_cond_proj_dim": sizes["w_width"],
        "time_embedding_dim": None,
        "addition_embed_type": "text_time" if added else None,
        "addition_time_embed_dim": sizes["added_time_width"] if added else None,
        "projection_class_embeddings_input_dim": added,
        **({"upcast_attention": True} if sizes["upcast_attention"] else {}),
    }


def autoencoder_sizes(config: Config, source: str = "vae/config.json") -> dict[str, Any]:
    """Fields of models.autoencoder.AutoencoderConfig for the content of an AutoencoderKL's config.json.

    Of an AutoencoderTiny's they are those of TinyAutoencoderConfig, known by "encoder_blocks".
    Raises ValueError as `unet_sizes` does.
    """
    if config.get("_class_name") == "AutoencoderTiny":
        return _tiny_sizes(config, source)
    c = read(config, "AutoencoderKL", _VAE, _VAE_FIXED, _VAE_UNREAD, source)
    levels = len(which_levels(c, "down_block_types", "DownEncoderBlock2D", None, source))
    if len(which_levels(c, "up_block_types", "UpDecoderBlock2D", None, source)) != levels:
        refuse(source, "up_block_types", c["up_block_types"], f"{levels} entries, as down_block_types has")
    return {
        "channels": per_level(c, "block_out_channels", levels, source),
        "layers": count(c, "layers_per_block", source),
        "latent_channels": count(c, "latent_channels", source),
        "patch": 1,
        "norm_groups": count(c, "norm_num_groups", source),
        "scale": _number(c, "scaling_factor", source),
        "shift": 0.0 if c["shift_factor"] is None else _number(c, "shift_factor", source),
        "force_upcast": bool(c["force_upcast"]),
    }


def _tiny_sizes(config: Config, source: str) -> dict[str, Any]:
    c = read(config, "AutoencoderTiny", _TINY, _TINY_FIXED, _TINY_UNREAD, source)
    blocks = c["num_encoder_blocks"]
    if not isinstance(blocks, list | tuple) or not blocks:
        refuse(source, "num_encoder_blocks", blocks, "a list of positive whole numbers, one a level")
    levels = len(blocks)
    widths = {key: per_level(c, key, levels, source) for key in _TINY if key.endswith("_block_out_channels")}
    width = widths["encoder_block_out_channels"][0]
    for key, value in widths.items():
        if set(value) != {width}:
            refuse(source, key, c[key], f"one width everywhere ({width} is the encoder's first)")
    return {
        "width": width,
        "encoder_blocks": per_level(c, "num_encoder_blocks", levels, source),
        "decoder_blocks": per_level(c, "num_decoder_blocks", levels, source),
        "latent_channels": count(c, "latent_channels", source),
        "scale": _number(c, "scaling_factor", source),
        "shift": _number(c, "shift_factor", source),
    }


def _number(config: Config, key: str, source: str) -> float:
    if type(config[key]) not in (int, float):
        refuse(source, key, config[key], "a number")
    return float(config[key])


def autoencoder_factor(sizes: Mapping[str, Any]) -> int:
    """Image pixels per latent pixel along one side, of `autoencoder_sizes`."""
    levels = sizes["encoder_blocks"] if "encoder_blocks" in sizes else sizes["channels"]
    return sizes.get("patch", 1) * 2 ** (len(levels) - 1)


def autoencoder_config(sizes: Mapping[str, Any], sample_size: int) -> dict[str, Any]:
    """The config.json of which diffusers rebuilds the autoencoder of these sizes, for images of `sample_size`.

    Raises ValueError for what AutoencoderKL does not know: a patch other than 1, and a shift, which the pipelines
    of Stable Diffusion would leave out.
    """
    if "encoder_blocks" in sizes:
        return _tiny_config(sizes)
    if sizes["patch"] != 1:
        raise ValueError(f"autoencoder.patch is {sizes['patch']}: diffusers' AutoencoderKL only knows 1, keep this one")
    if sizes.get("shift"):
        raise ValueError(f"autoencoder.shift is {sizes['shift']:g}: diffusers' Stable Diffusion only knows 0")
    levels = len(sizes["channels"])
    return {
        "_class_name": "AutoencoderKL",
        **{key: values[0] for key, values in _VAE_FIXED.items()},
        "sample_size": sample_size,
        "force_upcast": sizes["force_upcast"],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(sizes["channels"]),
        "layers_per_block": sizes["layers"],
        "latent_channels": sizes["latent_channels"],
        "norm_num_groups": sizes["norm_groups"],
        "scaling_factor": sizes["scale"],
    }


def _tiny_config(sizes: Mapping[str, Any]) -> dict[str, Any]:
    widths = [sizes["width"]] * len(sizes["encoder_blocks"])
    return {
        "_class_name": "AutoencoderTiny",
        **{key: values[0] for key, values in _TINY_FIXED.items()},
        "encoder_block_out_channels": widths,
        "decoder_block_out_channels": widths,
        "num_encoder_blocks": list(sizes["encoder_blocks"]),
        "num_decoder_blocks": list(sizes["decoder_blocks"]),
        "latent_channels": sizes["latent_channels"],
        "scaling_factor": sizes["scale"],
        "shift_factor": sizes["shift"],
    }


def text_encoder_config(sizes: Mapping[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """The config.json of which transformers rebuilds the CLIP text encoder of these sizes, saved in `dtype`.

    `sizes` are the fields of models.clip_text.ClipTextConfig, whose inverse is clip_text.clip_text_config.
    """
    projection = sizes["projection"]
    return {
        "architectures": ["CLIPTextModel" if projection is None else "CLIPTextModelWithProjection"],
        "model_type": "clip_text_model",
        "dtype": dtype,
        "torch_dtype": dtype,  # the same to transformers before 4.56
        "vocab_size": sizes["vocabulary"],
        "hidden_size": sizes["width"],
        "intermediate_size": sizes["inner"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["heads"],
        "max_position_embeddings": sizes["positions"],
        "hidden_act": sizes["hidden_act"],
        "layer_norm_eps": sizes["eps"],
        "projection_dim": projection or sizes["width"],
        "eos_token_id": sizes["eos_token_id"],
        # Without effect on encoding, as published: the tokenizer beside decides both.
        "bos_token_id": 0,
        "pad_token_id": 1,
        "attention_dropout": 0.0,
    }
