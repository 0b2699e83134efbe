"""The JSON files of published pipelines: what their model_index.json and config.json say, key by key."""

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_CLIP_L = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
    "eos_token_id": 2,
}
_CLIP_H = {**_CLIP_L, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "hidden_act": "gelu"}
_CLIP_H |= {"num_attention_heads": 16, "projection_dim": 512}
_CLIP_G = {**_CLIP_H, "architectures": ["CLIPTextModelWithProjection"], "hidden_size": 1280, "intermediate_size": 5120}
_CLIP_G |= {"num_hidden_layers": 32, "num_attention_heads": 20, "projection_dim": 1280}

_UNET_15 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [_CROSS, _CROSS, _CROSS, _PLAIN],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
_UNET_21_BASE = {
    **_UNET_15,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "use_linear_projection": True,
}
_LATER = {  # keys of files saved since 0.19 that have the same value in all of them
    "addition_embed_type_num_heads": 64,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
}
_UNET_XL = {
    **_UNET_15,
    **_LATER,
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": [_PLAIN, _CROSS, _CROSS],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
_UNET_LCM = {
    **_UNET_15,
    **_LATER,
    "_diffusers_version": "0.22.0.dev0",
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "attention_type": "default",
    "dropout": 0.0,
    "projection_class_embeddings_input_dim": None,
    "time_cond_proj_dim": 256,
    "transformer_layers_per_block": 1,
    "upcast_attention": None,
    "use_linear_projection": False,
}
_VAE_15 = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_VAE_XL = {**_VAE_15, "_name_or_path": "../sdxl-vae/", "force_upcast": True, "sample_size": 1024}
_VAE_XL |= {"scaling_factor": 0.13025}
_PNDM_15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
_DDIM_21 = {**_PNDM_15, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction"}
_EULER_XL = {
    **_PNDM_15,
    "_class_name": "EulerDiscreteScheduler",
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
_LCM = {
    "_class_name": "LCMScheduler",
    "_diffusers_version": "0.22.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "num_train_timesteps": 1000,
    "original_inference_steps": 50,
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}


def _index(pipeline: str, scheduler: str, **more) -> dict:
    return {
        "_class_name": pipeline,
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        **more,
    }


_XL_PARTS = {
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "force_zeros_for_empty_prompt": True,
}
PUBLISHED = {  # pipeline -> component -> its JSON
    "stable-diffusion-v1-5": {
        "model_index": _index("StableDiffusionPipeline", "PNDMScheduler"),
        "unet": _UNET_15,
        "vae": _VAE_15,
        "scheduler": _PNDM_15,
        "text_encoder": _CLIP_L,
    },
    "stable-diffusion-2-1-base": {
        "model_index": _index("StableDiffusionPipeline", "PNDMScheduler"),
        "unet": _UNET_21_BASE,
        "vae": _VAE_15,
        "scheduler": {**_PNDM_15, "prediction_type": "epsilon"},
        "text_encoder": _CLIP_H,
    },
    "stable-diffusion-2-1": {
        "model_index": _index("StableDiffusionPipeline", "DDIMScheduler"),
        "unet": {**_UNET_21_BASE, "sample_size": 96, "upcast_attention": True},
        "vae": {**_VAE_15, "sample_size": 768},
        "scheduler": _DDIM_21,
        "text_encoder": _CLIP_H,
    },
    "stable-diffusion-xl-base-1.0": {
        "model_index": _index("StableDiffusionXLPipeline", "EulerDiscreteScheduler", **_XL_PARTS),
        "unet": _UNET_XL,
        "vae": _VAE_XL,
        "scheduler": _EULER_XL,
        "text_encoder": _CLIP_L,
        "text_encoder_2": _CLIP_G,
    },
    "LCM_Dreamshaper_v7": {
        "model_index": _index("LatentConsistencyModelPipeline", "LCMScheduler", requires_safety_checker=True),
        "unet": _UNET_LCM,
        "vae": {**_VAE_15, "force_upcast": True, "sample_size": 768, "scaling_factor": 0.18215},
        "scheduler": _LCM,
        "text_encoder": _CLIP_L,
    },
}
