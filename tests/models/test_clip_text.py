"""The CLIP text encoders against transformers: states, pooled vectors, keys, sizes and files."""

import json
from dataclasses import replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from lcm_jax.models.clip_text import CLIP_TEXT, UNUSED_KEYS, ClipTextConfig, clip_text, clip_text_config, file_names
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key
from lcm_jax.weights.safetensors_file import SafetensorsFile

TINY = ClipTextConfig(width=32, layers=2, heads=4, inner=48, vocabulary=99, positions=10, eps=1e-4)
PARAMETERS = {"sd15": 123_060_480, "sd21": 340_387_840, "sdxl2": 694_659_840}
# activation, end of a caption, projection
KINDS = [("quick_gelu", 2, None), ("gelu", 2, 24), ("quick_gelu", 90, 24), ("gelu", 90, None)]
# Where the end is if it is the largest id, and if it is the first 90: positions 4, 1, 9 and 3, 2, 7.
IDS = np.array(
    [
        [88, 2, 17, 90, 98, 98, 98, 98, 98, 98],
        [88, 95, 90, 0, 0, 0, 0, 0, 0, 0],
        [2, 5, 5, 6, 7, 8, 9, 90, 90, 91],
    ]
)


def tiny(hidden_act="quick_gelu", eos_token_id=2, projection=None, dtype="float32"):
    return replace(TINY, hidden_act=hidden_act, eos_token_id=eos_token_id, projection=projection, dtype=dtype)


@lru_cache
def tensors(cfg):
    """Random weights in PyTorch's names and layouts."""
    blank = jax.tree.map(lambda leaf: np.empty(leaf.shape), clip_text(cfg).abstract())
    return cases.fill({name: value.shape for name, value in to_torch(blank).items()})


@lru_cache
def jitted(cfg):
    return jax.jit(clip_text(cfg).apply)


def weights(cfg, dtype):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), clip_text(cfg).abstract())
    return from_torch(tensors(cfg), abstract)


def ours(cfg, ids=IDS, dtype="float32"):
    return jitted(cfg)(weights(cfg, dtype), jnp.asarray(ids, jnp.int32))


def their_kind(cfg):
    """transformers' class and config of the same sizes; skips where it is not installed."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind = transformers.CLIPTextModel if cfg.projection is None else transformers.CLIPTextModelWithProjection
    config = transformers.CLIPTextConfig(
        vocab_size=cfg.vocabulary,
        hidden_size=cfg.width,
        intermediate_size=cfg.inner,
        projection_dim=cfg.projection or 512,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.positions,
        hidden_act=cfg.hidden_act,
        layer_norm_eps=cfg.eps,
        bos_token_id=0,
        eos_token_id=cfg.eos_token_id,
    )
    return kind, config


def their_model(cfg, dtype):
    """transformers' model, filled with `tensors`."""
    import torch

    kind, config = their_kind(cfg)
    model = kind(config).to(getattr(torch, dtype))
    drop = (lambda name: name) if cfg.projection else (lambda name: name.removeprefix("text_model."))
    model.load_state_dict({drop(name): torch.tensor(value) for name, value in tensors(cfg).items()})
    return model.eval()


def theirs(cfg, dtype):
    """last, penultimate, pooled and embeds, in ClipText's order."""
    import torch

    model = their_model(cfg, dtype)
    with torch.no_grad():
        out = model(torch.tensor(IDS), output_hidden_states=True)
        inner = out if cfg.projection is None else model.text_model(torch.tensor(IDS))
    embeds = None if cfg.projection is None else out.text_embeds.numpy()
    return out.last_hidden_state.numpy(), out.hidden_states[-2].numpy(), inner.pooler_output.numpy(), embeds


def relative(a, b):
    return np.linalg.norm(np.asarray(a, b.dtype) - b) / np.linalg.norm(b)


def check(cfg, dtype, bound, agree):
    want = theirs(cfg, dtype)
    for name, a, b in zip(("last", "penultimate", "pooled", "embeds"), ours(cfg, dtype=dtype), want, strict=True):
        assert (a is None) == (b is None), name
        if b is not None:
            assert a.dtype == b.dtype, name
            agree(f"text encoder, {name}, {dtype}", relative(a, b), bound)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_transformers_in_single_precision(kind, agree):
    check(tiny(*kind), "float32", 1e-5, agree)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_transformers_in_double_precision(kind, agree):
    with jax.enable_x64(True):
        check(tiny(*kind, dtype="float64"), "float64", 1e-9, agree)


@pytest.mark.parametrize("eos, ends", [(2, (4, 1, 0)), (90, (3, 2, 7))])
def test_the_pooled_vector_is_the_last_state_at_the_end_of_the_caption(eos, ends):
    ids = IDS.copy()
    ids[2, 0] = 98  # a tie with nothing: the largest id may come first
    out = ours(tiny(eos_token_id=eos), ids)
    np.testing.assert_array_equal(out.pooled, np.asarray(out.last)[np.arange(3), ends])


def test_no_token_sees_a_later_one():
    changed = IDS.copy()
    changed[:, 6] = 50
    before, after = ours(TINY), ours(TINY, changed)
    np.testing.assert_array_equal(before.last[:, :6], after.last[:, :6])
    assert (np.abs(before.last - after.last)[:, 6:].max(-1) > 1e-3).all()


def test_shorter_captions_are_taken_and_longer_ones_refused():
    short, full = ours(TINY, IDS[:, :6]), ours(TINY)
    np.testing.assert_allclose(short.last, full.last[:, :6], atol=1e-5)
    with pytest.raises(ValueError, match="11 tokens, but 10 positions"):
        ours(TINY, np.zeros((1, 11)))


def test_an_id_outside_the_vocabulary_is_not_passed_over():
    assert np.isnan(ours(TINY, np.array([[1, 99, 3]])).last[0, 1:]).all()


def test_half_precision_computes_and_keeps_float32_parameters():
    half = tiny("gelu", 2, 24, "bfloat16")
    net = clip_text(half)
    assert {leaf.dtype for leaf in jax.tree.leaves(net.abstract())} == {jnp.dtype("float32")}
    jaxpr = str(jax.make_jaxpr(net.apply)(net.abstract(), jnp.asarray(IDS, jnp.int32)))
    assert "bf16[32,48]" in jaxpr and "bf16[99,32]" not in jaxpr  # kernels are cast on the way in, the table is not
    for a, b in zip(ours(half), ours(replace(half, dtype="float32")), strict=True):
        assert a.dtype == jnp.float32 and 0 < relative(a, np.asarray(b)) < 0.03


def test_a_fresh_network_has_the_shapes_of_its_plan():
    net = clip_text(TINY)
    params = jax.eval_shape(net.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(
        lambda x: (x.shape, x.dtype), net.abstract()
    )


def torch_shapes(flat):
    """Names and shapes as PyTorch has them: the last two dims of a kernel come first, swapped."""
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    return {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}


@lru_cache
def planned(name):
    return flatten(clip_text(CLIP_TEXT[name]).abstract())


@pytest.mark.parametrize("name", CLIP_TEXT)
def test_presets_have_the_published_number_of_parameters(name):
    assert sum(int(np.prod(leaf.shape)) for leaf in planned(name).values()) == PARAMETERS[name]


@pytest.mark.parametrize("name", CLIP_TEXT)
def test_presets_have_every_name_and_shape_of_transformers_and_no_other(name):
    kind, config = their_kind(CLIP_TEXT[name])
    import torch

    with torch.device("meta"):
        found = {k: tuple(v.shape) for k, v in kind(config).state_dict().items()}
    named = torch_shapes(planned(name))
    assert len(named) == len(planned(name))
    assert {file_names(found)(k): shape for k, shape in named.items()} == found


def test_a_preset_against_its_published_config():
    """text_encoder/config.json of SD 1.5 and 2.1, text_encoder_2 of SDXL: what matters of them."""
    common = {"model_type": "clip_text_model", "eos_token_id": 2, "layer_norm_eps": 1e-05, "vocab_size": 49408}
    common |= {"max_position_embeddings": 77, "attention_dropout": 0.0, "torch_dtype": "float32"}
    plain, projected = {"architectures": ["CLIPTextModel"]}, {"architectures": ["CLIPTextModelWithProjection"]}
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act")
    published = {
        "sd15": plain | dict(zip(names, (768, 3072, 12, 12, "quick_gelu"), strict=True), projection_dim=768),
        "sd21": plain | dict(zip(names, (1024, 4096, 23, 16, "gelu"), strict=True), projection_dim=512),
        "sdxl2": projected | dict(zip(names, (1280, 5120, 32, 20, "gelu"), strict=True), projection_dim=1280),
    }
    assert {name: clip_text_config(common | value) for name, value in published.items()} == CLIP_TEXT


@pytest.mark.parametrize("kind", KINDS[::2], ids=str)
def test_a_folder_of_transformers(kind, tmp_path):
    """Config and weights as they lie on disk: with the prefix and the old buffer, and as version 5 writes them."""
    cfg = tiny(*kind)
    their_model(cfg, "float32").save_pretrained(tmp_path)
    assert clip_text_config(json.loads((tmp_path / "config.json").read_text())) == cfg
    net, file, want = clip_text(cfg), SafetensorsFile(tmp_path / "model.safetensors"), tensors(cfg)
    older = want | {"text_model.embeddings.position_ids": np.arange(10)[None]}
    for found in (file, older):
        params = from_torch(found, net.abstract(), ignore=UNUSED_KEYS, rename=file_names(found))
        for name, value in to_torch(params).items():
            np.testing.assert_array_equal(value, want[name].astype(np.float32))


@pytest.mark.parametrize("older", [None, {}, {"hidden_size": 64, "hidden_act": "gelu"}])
def test_the_text_half_of_a_whole_config(older):
    """Values left out are transformers' own, and the older copy of the half counts where there is one."""
    value = {"model_type": "clip", "projection_dim": 20, "text_config": {"hidden_size": 128, "eos_token_id": 2}}
    value |= {} if older is None else {"text_config_dict": older}
    cfg = clip_text_config(value)
    assert cfg.projection == 20
    assert (cfg.width, cfg.hidden_act, cfg.eos_token_id) == {
        None: (128, "quick_gelu", 2),
        0: (512, "quick_gelu", 49407),
        2: (64, "gelu", 49407),
    }[older if older is None else len(older)]
    transformers = pytest.importorskip("transformers")
    their = transformers.CLIPConfig(**json.loads(json.dumps(value))).text_config
    assert (cfg.width, cfg.inner, cfg.layers, cfg.heads) == (
        their.hidden_size,
        their.intermediate_size,
        their.num_hidden_layers,
        their.num_attention_heads,
    )
    assert (cfg.eps, cfg.vocabulary, cfg.positions) == (
        their.layer_norm_eps,
        their.vocab_size,
        their.max_position_embeddings,
    )
    assert (cfg.hidden_act, cfg.eos_token_id) == (their.hidden_act, their.eos_token_id)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "t5"}, "model_type 't5'; a CLIP text tower has 'clip_text_model' or 'clip'"),
        ({"architectures": ["CLIPTextModelForX"]}, r"architectures \['CLIPTextModelForX'\]; choose CLIPTextModel or"),
        ({"hidden_act": "gelu_new"}, "hidden_act is 'gelu_new'; choose one of quick_gelu, gelu"),
        ({"hidden_act": 3}, "hidden_act 3; supported is a str"),
        ({"eos_token_id": [2, 3]}, r"eos_token_id \[2, 3\]; supported is a positive int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0; supported is a positive int"),
        ({"layer_norm_eps": None}, "layer_norm_eps None; supported is a float"),
        ({"num_attention_heads": 7}, "width 512 does not split into 7 heads"),
        ({"use_attention_mask": True}, "use_attention_mask true"),
    ],
)
def test_an_unsupported_value_is_named(change, message):
    value = {"model_type": "clip_text_model", "architectures": ["CLIPTextModel"]}
    assert clip_text_config(value).width == 512
    with pytest.raises(ValueError, match=message) as error:
        clip_text_config(value | change)
    assert "\n" not in str(error.value)


def test_sizes_that_make_no_encoder_are_refused():
    with pytest.raises(ValueError, match="0 layers"):
        replace(TINY, layers=0)
