"""The CLIP image tower against transformers, and its pixels against Pillow's."""

import json
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from PIL import Image

from lcm_jax.models import clip_text as text
from lcm_jax.models.clip_vision import (
    UNUSED_KEYS,
    ClipVisionConfig,
    clip_preprocess,
    clip_vision,
    clip_vision_config,
)
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key
from lcm_jax.weights.safetensors_file import SafetensorsFile

TINY = ClipVisionConfig(width=32, layers=2, heads=4, inner=48, eps=1e-4, projection=24, size=12, patch=4)
PUBLISHED = {  # and how many parameters each has
    # OpenAI's ViT-L/14, the usual judge of CLIP scores.
    ClipVisionConfig(): 303_966_208,
    # OpenCLIP's ViT-g/14, the judge in the LCM paper.
    ClipVisionConfig(width=1408, layers=40, inner=6144, hidden_act="gelu", projection=1024): 1_012_645_632,
}
KINDS = [("quick_gelu", 24), ("gelu", None)]


@lru_cache
def tensors(cfg):
    """Random weights in PyTorch's names and layouts."""
    blank = jax.tree.map(lambda leaf: np.empty(leaf.shape), clip_vision(cfg).abstract())
    return cases.fill({name: value.shape for name, value in to_torch(blank).items()})


def image():
    return np.random.default_rng(0).standard_normal((2, 12, 12, 3))


@lru_cache
def jitted(cfg):
    return jax.jit(clip_vision(cfg).apply)


def ours(cfg, dtype="float32"):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), clip_vision(cfg).abstract())
    return jitted(cfg)(from_torch(tensors(cfg), abstract), jnp.asarray(image(), dtype))


def their_kind(cfg):
    """transformers' class and config of the same sizes; skips where it is not installed."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = transformers.CLIPVisionModel if cfg.projection is None else transformers.CLIPVisionModelWithProjection
    config = transformers.CLIPVisionConfig(
        hidden_size=cfg.width,
        intermediate_size=cfg.inner,
        projection_dim=cfg.projection or 512,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        image_size=cfg.size,
        patch_size=cfg.patch,
        hidden_act=cfg.hidden_act,
        layer_norm_eps=cfg.eps,
    )
    return kind, config


def their_model(cfg, dtype):
    """transformers' model, filled with `tensors`."""
    import torch

    kind, config = their_kind(cfg)
    model = kind(config).to(getattr(torch, dtype))
    drop = (lambda name: name) if cfg.projection else (lambda name: name.removeprefix("vision_model."))
    model.load_state_dict({drop(name): torch.tensor(value) for name, value in tensors(cfg).items()})
    return model.eval()


def relative(a, b):
    return np.linalg.norm(np.asarray(a, b.dtype) - b) / np.linalg.norm(b)


def check(cfg, dtype, bound):
    model = their_model(cfg, dtype)
    import torch

    pixels = torch.tensor(image().transpose(0, 3, 1, 2), dtype=getattr(torch, dtype))
    with torch.no_grad():
        out = model(pixels)
        inner = out if cfg.projection is None else model.vision_model(pixels)
    embeds = None if cfg.projection is None else out.image_embeds.numpy()
    want = out.last_hidden_state.numpy(), inner.pooler_output.numpy(), embeds
    for name, a, b in zip(("last", "pooled", "embeds"), ours(cfg, dtype), want, strict=True):
        assert (a is None) == (b is None), name
        assert b is None or (a.dtype == b.dtype and relative(a, b) < bound), name


@pytest.mark.parametrize("hidden_act, projection", KINDS)
def test_transformers_in_single_precision(hidden_act, projection):
    check(replace(TINY, hidden_act=hidden_act, projection=projection), "float32", 1e-5)


@pytest.mark.parametrize("hidden_act, projection", KINDS)
def test_transformers_in_double_precision(hidden_act, projection):
    with jax.enable_x64(True):
        check(replace(TINY, hidden_act=hidden_act, projection=projection, dtype="float64"), "float64", 1e-9)


def test_half_precision_stays_near():
    for a, b in zip(ours(replace(TINY, dtype="bfloat16")), ours(TINY), strict=True):
        assert a.dtype == jnp.float32 and 0 < relative(a, np.asarray(b)) < 0.03


@pytest.mark.parametrize("cfg", PUBLISHED, ids=["vit_l_14", "vit_g_14"])
def test_published_towers_have_every_name_and_shape_of_transformers_and_no_other(cfg):
    flat = flatten(clip_vision(cfg).abstract())
    assert sum(int(np.prod(leaf.shape)) for leaf in flat.values()) == PUBLISHED[cfg]
    kind, config = their_kind(cfg)
    import torch

    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in kind(config).state_dict().items()}
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    named = {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}
    assert len(named) == len(flat)
    assert named == found


def test_both_towers_of_one_whole_folder(tmp_path):
    """A whole CLIP as transformers saves it: each tower finds its half in the config and the weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config=dict(
            vocab_size=60,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=57,
            eos_token_id=58,
        ),
        vision_config=dict(
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=3,
            image_size=12,
            patch_size=4,
        ),
        projection_dim=20,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    value, file = json.loads((tmp_path / "config.json").read_text()), SafetensorsFile(tmp_path / "model.safetensors")

    ids = np.array([[57, 3, 4, 58, 59, 58, 58, 58]])
    with torch.no_grad():
        pixels = torch.tensor(image().transpose(0, 3, 1, 2), dtype=torch.float32)
        want = model(input_ids=torch.tensor(ids), pixel_values=pixels)
    reads, sees = text.clip_text(text.clip_text_config(value)), clip_vision(clip_vision_config(value))
    of_text = from_torch(file, reads.abstract(), ignore=text.UNUSED_KEYS)
    of_image = from_torch(file, sees.abstract(), ignore=UNUSED_KEYS)
    for a, b in (
        (jax.jit(reads.apply)(of_text, jnp.asarray(ids, jnp.int32)).embeds, want.text_embeds),
        (jax.jit(sees.apply)(of_image, jnp.asarray(image(), jnp.float32)).embeds, want.image_embeds),
    ):
        assert relative(a / jnp.linalg.norm(a, axis=-1, keepdims=True), b.numpy()) < 1e-5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "siglip"}, "model_type 'siglip'; a CLIP vision tower has 'clip_vision_model' or 'clip'"),
        ({"architectures": None}, "architectures None; choose CLIPVisionModel or CLIPVisionModelWithProjection"),
        ({"num_channels": 1}, "num_channels 1; supported are 3"),
        ({"image_size": [224, 224]}, r"image_size \[224, 224\]; supported is a positive int"),
        ({"patch_size": 15}, "size 224 is no multiple of its patch 15"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; choose one of quick_gelu, gelu"),
    ],
)
def test_an_unsupported_value_is_named(change, message):
    value = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"]}
    assert clip_vision_config(value) == ClipVisionConfig(768, 12, 12, 3072, projection=512, patch=32)
    with pytest.raises(ValueError, match=message) as error:
        clip_vision_config(value | change)
    assert "\n" not in str(error.value)


def test_a_picture_of_another_size_is_refused():
    net = clip_vision(TINY)
    with pytest.raises(ValueError, match="picture of 12 x 8, this tower takes 12 x 12: use clip_preprocess"):
        jax.eval_shape(net.apply, net.abstract(), jax.ShapeDtypeStruct((1, 12, 8, 3), jnp.float32))


def noise(h, w):
    return np.random.default_rng(h * w).integers(0, 256, (2, h, w, 3), dtype=np.uint8)


def levels(x):
    """Preprocessed pixels back as 0..255."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return (np.asarray(x, np.float64) * std + mean) * 255


@pytest.mark.parametrize("h, w", [(28, 28), (64, 64), (9, 15), (50, 41), (33, 100)])
def test_pixels_are_pillows(h, w):
    """Up and down, square, wide and tall: width first, then height, then the centre."""
    pixels, size = noise(h, w), 28
    new_h, new_w = size * h // min(h, w), size * w // min(h, w)
    top, left = (new_h - size) // 2, (new_w - size) // 2
    box = (left, top, left + size, top + size)
    resized = lambda x: Image.fromarray(x).resize((new_w, h), Image.BICUBIC).resize((new_w, new_h), Image.BICUBIC)
    want = np.stack([np.asarray(resized(x).crop(box)) for x in pixels])
    got = jax.jit(clip_preprocess, static_argnums=1)(jnp.asarray(pixels), size)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(levels(got), want, atol=1e-4)


@pytest.mark.parametrize("h, w", [(64, 64), (240, 300)])
def test_pixels_are_those_of_transformers(h, w):
    transformers = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    pixels = noise(h, w)[:1]
    want = transformers.CLIPImageProcessorPil()(list(pixels), return_tensors="np")["pixel_values"]
    got = jax.jit(clip_preprocess)(jnp.asarray(pixels))
    np.testing.assert_allclose(got, want.transpose(0, 2, 3, 1), atol=1e-5)
