"""The small parts of networks, each against PyTorch's module of the same weights, or against what it must do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from lcm_jax.models import attention
from lcm_jax.models.attention import (
    Attention,
    FeedForward,
    SpatialTransformer,
    TransformerBlock,
    attend,
    implementation,
)
from lcm_jax.models.functional import functional
from lcm_jax.models.layers import (
    Downsample,
    GroupNorm,
    ResnetBlock,
    TimeEmbedding,
    Upsample,
    check_sides,
    double,
    time_features,
)
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import from_torch

DTYPES = pytest.mark.parametrize("dtype, bound", [("float32", 1e-5), ("float64", 1e-9)])


@functools.cache
def torch():
    """PyTorch, or a skip."""
    return pytest.importorskip("torch")


def diffusers(name):
    """A part of diffusers by its dotted name, or a skip."""
    torch()
    module, _, part = name.rpartition(".")
    return getattr(pytest.importorskip(f"diffusers.models.{module}"), part)


def relative(a, b):
    b = np.asarray(b, np.float64)
    return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def channels_first(x):
    return x if x.ndim != 4 else x.permute(0, 3, 1, 2)


def theirs(module, dtype, *inputs, **kw):
    """The module's answer with weights drawn by name, NHWC in and out."""
    kind = getattr(torch(), dtype)
    module = module.to(kind)
    tensors = cases.fill({k: tuple(v.shape) for k, v in module.state_dict().items()})
    module.load_state_dict({k: torch().tensor(v) for k, v in tensors.items()})
    with torch().no_grad():
        out = module(*(channels_first(torch().tensor(x, dtype=kind)) for x in inputs), **kw)
    return (out if out.ndim != 4 else out.permute(0, 2, 3, 1)).numpy(), tensors


def ours(build, dtype, tensors, *inputs, **kw):
    """Our part's answer with the same weights."""
    net = functional(lambda rngs: build(rngs=rngs, dtype=jnp.dtype(dtype)))
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), net.abstract())
    return jax.jit(lambda p, *x: net.apply(p, *x, **kw))(
        from_torch(tensors, abstract), *(jnp.asarray(x, dtype) for x in inputs)
    )


def same(build, module, dtype, bound, *inputs, **kw):
    with jax.enable_x64(dtype == "float64"):
        want, tensors = theirs(module, dtype, *inputs)
        got = ours(build, dtype, tensors, *inputs, **kw)
        assert got.shape == want.shape and got.dtype == dtype
        assert relative(got, want) < bound


@DTYPES
@pytest.mark.parametrize("groups, eps", [(1, 1e-5), (4, 1e-6), (12, 1e-1)])
def test_group_norm(groups, eps, dtype, bound):
    build = lambda rngs, dtype: GroupNorm(12, groups, eps)
    same(build, torch().nn.GroupNorm(groups, 12, eps), dtype, bound, 3 + draw(2, 5, 3, 12))


def test_group_norm_takes_tokens_as_well_as_images():
    norm, x = GroupNorm(8, 4), jnp.asarray(draw(2, 3, 5, 8), jnp.float32)
    np.testing.assert_array_equal(norm(x.reshape(2, 15, 8)), norm(x).reshape(2, 15, 8))


def test_group_norm_measures_half_precision_in_single():
    """Squares of bfloat16 values around 100 leave no digits for a spread of 1."""
    x = jnp.asarray(100 + draw(2, 16, 16, 8), jnp.bfloat16)
    norm = GroupNorm(8, 2)
    assert norm(x).dtype == jnp.bfloat16
    assert relative(norm(x), norm(x.astype(jnp.float32))) < 4e-3  # that of rounding the result


def test_group_norm_refuses_groups_that_do_not_fit():
    with pytest.raises(ValueError, match="10 channels do not split into 4 groups"):
        GroupNorm(10, 4)


@DTYPES
@pytest.mark.parametrize("inp, out, temb", [(8, 8, None), (8, 12, 6)])
def test_resnet_block(inp, out, temb, dtype, bound):
    resnet = diffusers("resnet.ResnetBlock2D")
    module = resnet(in_channels=inp, out_channels=out, temb_channels=temb, groups=4, eps=1e-4)
    build = functools.partial(ResnetBlock, inp, out, temb, 4, 1e-4)
    inputs = [draw(2, 5, 3, inp)] + ([draw(2, temb)] if temb else [])
    if temb is None:
        plain = module.forward
        module.forward = lambda x: plain(x, None)
    same(build, module, dtype, bound, *inputs)


@pytest.mark.parametrize("sides", [(8, 6), (7, 9), (1, 2)])
def test_downsampling_is_padded_all_around(sides):
    module = diffusers("downsampling.Downsample2D")(4, use_conv=True, padding=1, name="op")
    same(functools.partial(Downsample, 4), module, "float32", 1e-5, draw(2, *sides, 4))


@pytest.mark.parametrize("sides", [(8, 6), (7, 9)])
def test_the_autoencoders_downsampling_is_padded_right_and_below(sides):
    module = diffusers("downsampling.Downsample2D")(4, use_conv=True, padding=0, name="op")
    build = functools.partial(Downsample, 4, asymmetric=True)
    same(build, module, "float32", 1e-5, draw(2, *sides, 4))


@pytest.mark.parametrize("size", [None, (6, 10), (5, 9), (6, 9), (7, 11), (3, 5), (2, 4)])
def test_upsampling_follows_the_size_it_is_given(size):
    module = diffusers("upsampling.Upsample2D")(4, use_conv=True)
    plain = module.forward
    module.forward = lambda x: plain(x, size)

    class Sized(Upsample):
        def __call__(self, x):
            return super().__call__(x, size)

    same(functools.partial(Sized, 4), module, "float32", 1e-5, draw(2, 3, 5, 4))


def test_doubling_repeats_every_pixel():
    x = draw(2, 3, 5, 4).astype(np.float32)
    np.testing.assert_array_equal(double(jnp.asarray(x)), x.repeat(2, axis=1).repeat(2, axis=2))


def test_sides_are_checked_against_the_factor():
    check_sides(jnp.zeros((1, 16, 24, 3)), 8)
    with pytest.raises(ValueError, match="image 16 x 20 is not divisible by 8"):
        check_sides(jnp.zeros((1, 16, 20, 3)), 8)


def test_time_features_are_cosines_then_sines():
    t = np.array([0, 1, 999])
    np.testing.assert_array_equal(time_features(jnp.array([0]), 6)[0], [1, 1, 1, 0, 0, 0])
    got = time_features(jnp.asarray(t), 8)
    angle = t[:, None] * 10_000.0 ** (-np.arange(4) / 4)[None]
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, np.concatenate([np.cos(angle), np.sin(angle)], 1), atol=1e-4)
    np.testing.assert_allclose(got[:2], np.concatenate([np.cos(angle), np.sin(angle)], 1)[:2], atol=1e-6)


def test_time_features_are_those_of_diffusers():
    embedding = diffusers("embeddings.get_timestep_embedding")
    t = np.array([0, 1, 3, 250, 981, 999])
    want = embedding(torch().tensor(t), 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    np.testing.assert_allclose(time_features(jnp.asarray(t), 32), want.numpy(), atol=1e-4)


@DTYPES
def test_time_embedding(dtype, bound):
    module = diffusers("embeddings.TimestepEmbedding")(8, 24, cond_proj_dim=6)
    same(functools.partial(TimeEmbedding, 8, 24, 6), module, dtype, bound, draw(2, 8), draw(2, 6))


def test_guidance_enters_through_a_map_of_zeros():
    net = functional(lambda rngs: TimeEmbedding(8, 24, 6, rngs=rngs))
    params = net.init(jax.random.key(0))
    features, w = (jnp.asarray(draw(2, n), jnp.float32) for n in (8, 6))
    assert params["cond_proj"]["kernel"].shape == (6, 8) and not params["cond_proj"]["kernel"].any()
    np.testing.assert_array_equal(net.apply(params, features, w), net.apply(params, features))


@DTYPES
@pytest.mark.parametrize("heads", [1, 3])
def test_attend(heads, dtype, bound):
    q, k, v = draw(2, 5, 12), 3 * draw(2, 7, 12, seed=1), draw(2, 7, 12, seed=2)
    split = lambda x: torch().tensor(x, dtype=getattr(torch(), dtype)).unflatten(-1, (heads, -1)).transpose(1, 2)
    want = torch().nn.functional.scaled_dot_product_attention(split(q), split(k), split(v))
    with jax.enable_x64(dtype == "float64"):
        got = attend(*(jnp.asarray(x, dtype) for x in (q, k, v)), heads)
        assert got.dtype == dtype
        assert relative(got, want.transpose(1, 2).flatten(2).numpy()) < bound


@DTYPES
def test_attention_to_a_context(dtype, bound):
    module = diffusers("attention_processor.Attention")(12, 10, heads=3, dim_head=4)
    build = functools.partial(Attention, 12, 10, 3)
    same(build, module, dtype, bound, draw(2, 5, 12), draw(2, 7, 10, seed=1))


@DTYPES
def test_feed_forward(dtype, bound):
    module = diffusers("attention.FeedForward")(8, activation_fn="geglu")
    same(functools.partial(FeedForward, 8), module, dtype, bound, draw(2, 5, 8))


@DTYPES
def test_transformer_block(dtype, bound):
    module = diffusers("attention.BasicTransformerBlock")(12, 3, 4, cross_attention_dim=10)
    plain = module.forward
    module.forward = lambda x, context: plain(x, encoder_hidden_states=context)
    inputs = draw(2, 5, 12), draw(2, 7, 10, seed=1)
    same(functools.partial(TransformerBlock, 12, 10, 3), module, dtype, bound, *inputs)


@DTYPES
@pytest.mark.parametrize("linear", [False, True])
def test_spatial_transformer(linear, dtype, bound):
    module = diffusers("transformers.transformer_2d.Transformer2DModel")(
        3, 4, 12, num_layers=2, norm_num_groups=4, cross_attention_dim=10, use_linear_projection=linear
    )
    plain = module.forward
    module.forward = lambda x, context: plain(x, context, return_dict=False)[0]
    build = functools.partial(SpatialTransformer, 12, 10, 3, 2, 4, linear)
    same(build, module, dtype, bound, draw(2, 5, 3, 12), draw(2, 7, 10, seed=1))


@pytest.fixture
def anew():
    """Networks are made anew, not kept from a test on another platform."""
    unet.cache_clear()
    yield
    unet.cache_clear()


@pytest.mark.parametrize(
    "platform, dtype, size, want",
    [
        ("cuda", "bfloat16", 40, "cudnn"),
        ("cuda", "float16", 64, "cudnn"),
        ("cuda", "bfloat16", 128, "cudnn"),
        ("cuda", "bfloat16", 160, "xla"),  # too wide for cards before Hopper
        ("cuda", "bfloat16", 36, "xla"),  # no multiple of 8
        ("cuda", "float32", 64, "xla"),
        ("cuda", "float64", 64, "xla"),
        ("rocm", "bfloat16", 64, "xla"),
        ("tpu", "bfloat16", 64, "xla"),
        ("cpu", "bfloat16", 64, "xla"),
    ],
)
def test_attention_is_fused_where_it_can_be(platform, dtype, size, want):
    assert implementation(platform, jnp.dtype(dtype), size) == want


HALF = UNetConfig((16, 32), (True, True), (1, 1), (2, 2), 1, context_width=16, norm_groups=8, dtype="bfloat16")


@pytest.mark.parametrize("kernel, taken", [("auto", {"cudnn"}), ("cudnn", {"cudnn"}), ("xla", {"xla"})])
def test_a_u_net_attends_by_the_kernel_that_was_chosen(kernel, taken, monkeypatch, anew):
    asked = []
    plain = jax.nn.dot_product_attention
    spy = lambda *given, implementation: asked.append(implementation) or plain(*given)
    monkeypatch.setattr(jax.nn, "dot_product_attention", spy)
    monkeypatch.setattr(attention, "platform", lambda: "cuda")
    net = unet(HALF, kernel)
    shape = lambda *sides: jax.ShapeDtypeStruct(sides, jnp.float32)
    jax.eval_shape(net.apply, net.abstract(), shape(1, 8, 8, 4), shape(1), shape(1, 3, 16))
    assert len(asked) == 2 * 7 and set(asked) == taken  # of every transformer, to itself and to the caption


@pytest.mark.parametrize(
    "platform, change, kernel, message",
    [
        ("cpu", {}, "cudnn", "'cudnn' takes heads of 8, 16, .. 128 .* some of 8 in bfloat16 on cpu: choose auto"),
        ("tpu", {}, "cudnn", "in bfloat16 on tpu: choose auto"),
        ("cuda", {"dtype": "float32"}, "cudnn", "some of 8 in float32 on cuda: choose auto"),
        ("cuda", {"heads": (2, 8)}, "cudnn", "some of 4 in bfloat16 on cuda: choose auto"),
        ("cuda", {}, "splash", "unknown attention 'splash'; choose one of auto, xla, cudnn"),
    ],
)
def test_an_impossible_kernel_is_refused_as_the_network_is_made(platform, change, kernel, message, monkeypatch, anew):
    monkeypatch.setattr(attention, "platform", lambda: platform)
    with pytest.raises(ValueError, match=message):
        unet(dataclasses.replace(HALF, **change), kernel)


def test_half_precision_attention_takes_its_softmax_in_single():
    q, k, v = (jnp.asarray(draw(1, 6, 8, seed=i), jnp.bfloat16) for i in range(3))
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), 2)
    got = attend(q, k, v, 2)
    assert got.dtype == jnp.bfloat16 and relative(got, exact) < 0.01


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="attention width 12 does not split into 5 heads"):
        functional(lambda rngs: Attention(12, 12, 5, rngs=rngs))
