"""Adapters against diffusers with peft and against a computation with hooks, and what merging promises itself."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from lcm_jax.models import lora
from lcm_jax.models.lora import LoraConfig
from lcm_jax.models.presets import UNETS
from lcm_jax.models.unet import unet
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, unflatten

# The target_modules of the published LCM-LoRA training script; peft adapts the modules whose name ends so.
PUBLISHED_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
PARTS = {"style": (2, 1.0), "lcm": (4, 3.0)}  # rank and alpha
STRENGTHS = [{"lcm": 0.0}, {"lcm": 0.8}, {"lcm": 1.0}, {"style": 0.8, "lcm": 1.0}]


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def deltas(adapters, alpha):
    """{path of a kernel: what merging adds to it}, in float64."""
    flat, found = flatten(adapters), {}
    for module in {path[:-1] for path in flat}:
        down, up = (np.asarray(flat[(*module, part)], np.float64) for part in ("down", "up"))
        found[(*module, "kernel")] = alpha / down.shape[-1] * down @ up.reshape(up.shape[-2:])
    return found


@functools.cache
def network(name):
    """The abstract tree and the compiled network."""
    net = unet(cases.UNETS[name][0])
    return net.abstract(), jax.jit(net.apply)


@functools.cache
def params_of(name, dtype="float32"):
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), network(name)[0])
    names = {k: v.shape for k, v in to_torch(jax.tree.map(lambda x: np.empty(x.shape), abstract)).items()}
    return from_torch(cases.fill(names), abstract)


def drawn(abstract, config, seed=""):
    """Adapters whose both halves matter."""
    rng, flat = np.random.default_rng(zlib.crc32(seed.encode())), {}
    for path, kernel in lora.targeted(abstract, config).items():
        *into, out = kernel.shape
        shapes = {"down": (*into, config.rank), "up": (*[1] * (len(into) - 1), config.rank, out)}
        for part, shape in shapes.items():
            value = rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
            flat[(*path.split("/"), part)] = value.astype(kernel.dtype)
    return unflatten(flat)


def parts_of(params):
    return {name: (drawn(params, LoraConfig(rank, alpha), name), alpha) for name, (rank, alpha) in PARTS.items()}


def run(name, params):
    inputs = cases.unet_inputs(name)
    real = {k: jnp.asarray(v, params["conv_in"]["kernel"].dtype) for k, v in inputs.items() if k != "t"}
    return network(name)[1](params, real.pop("z"), jnp.asarray(inputs["t"]), **real)


def torch_factors(tree):
    """{module as PyTorch names it: (down [r, i, ...], up [o, r, ...])}."""
    import torch

    pairs = {}
    for (*module, part), leaf in flatten(tree).items():
        turned = np.ascontiguousarray(np.moveaxis(np.asarray(leaf), (-2, -1), (1, 0)))
        pairs.setdefault(".".join(module), {})[part] = torch.tensor(turned)
    return {name: (pair["down"], pair["up"]) for name, pair in pairs.items()}


class Reference:
    """diffusers' U-Net with the same numbers."""

    def __init__(self, name):
        import torch
        from diffusers import UNet2DConditionModel

        self.torch, self.inputs = torch, cases.unet_inputs(name)
        self.net = UNet2DConditionModel(**cases.UNETS[name][1]).eval()
        filled = cases.fill({k: tuple(v.shape) for k, v in self.net.state_dict().items()})
        self.net.load_state_dict({k: torch.tensor(v) for k, v in filled.items()})

    def __call__(self):
        real = {k: self.torch.tensor(v, dtype=self.torch.float32) for k, v in self.inputs.items()}
        added = {"text_embeds": real["pooled"], "time_ids": real["time_ids"]} if "pooled" in real else None
        with self.torch.no_grad():
            out = self.net(
                real["z"].permute(0, 3, 1, 2),
                self.torch.tensor(self.inputs["t"]),
                real["context"],
                timestep_cond=real.get("w_features"),
                added_cond_kwargs=added,
            ).sample
        return out.permute(0, 2, 3, 1).numpy()

    def hook(self, factors, scale):
        """Adds scale * up(down(x)) to the output of each module, with the module's own stride and padding."""
        conv2d = self.torch.nn.functional.conv2d

        def add(module, down, up):
            def forward(_, args, out):
                (x,) = args
                if down.ndim == 2:
                    return out + scale * (x @ down.T @ up.T)
                return out + scale * conv2d(conv2d(x, down, stride=module.stride, padding=module.padding), up)

            return module.register_forward_hook(forward)

        modules = dict(self.net.named_modules())
        return [add(modules[name], *pair) for name, pair in factors.items()]


@pytest.fixture(scope="module", params=["lcm", "sdxl"])  # 1x1 convolutions and linear maps around transformers
def reference(request):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    return request.param, Reference(request.param)


@pytest.mark.parametrize("strengths", STRENGTHS, ids=str)
def test_outputs_with_adapters_equal_hooks_on_diffusers(reference, strengths):
    name, net = reference
    params = params_of(name)
    parts = parts_of(params)
    handles = []
    for part, strength in strengths.items():
        rank, alpha = PARTS[part]
        handles += net.hook(torch_factors(parts[part][0]), strength * alpha / rank)
    theirs = net()
    for handle in handles:
        handle.remove()
    ours = run(name, lora.combine(params, [(*parts[part], s) for part, s in strengths.items()]))
    assert relative(ours, theirs) < 1e-5
    if strengths["lcm"]:
        assert relative(theirs, net()) > 0.05  # the adapters matter


def test_outputs_with_adapters_equal_peft():
    """In diffusers' own words: add_adapter with the published targets, set_adapters with their strengths."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    peft = pytest.importorskip("peft")
    name = "sdxl"
    net, params = Reference(name), params_of(name)
    parts = parts_of(params)
    for part, (rank, alpha) in PARTS.items():
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(PUBLISHED_TARGETS))
        net.net.add_adapter(config, part)
        factors = torch_factors(parts[part][0])
        modules = {n: m for n, m in net.net.named_modules() if isinstance(m, peft.tuners.lora.LoraLayer)}
        assert modules.keys() == factors.keys()  # our default targets are theirs
        for module, (down, up) in factors.items():
            with torch.no_grad():
                modules[module].lora_A[part].weight.copy_(down)
                modules[module].lora_B[part].weight.copy_(up)
    for strengths in STRENGTHS:
        net.net.set_adapters(list(strengths), list(strengths.values()))
        ours = run(name, lora.combine(params, [(*parts[part], s) for part, s in strengths.items()]))
        assert relative(ours, net()) < 1e-5
    net.net.disable_adapters()
    assert relative(run(name, params), net()) < 1e-5


@pytest.mark.parametrize("name, modules, numbers", [("sd15", 278, 67_252_224), ("sdxl", 788, 196_751_360)])
def test_default_targets_are_those_of_the_published_lcm_loras(name, modules, numbers):
    """At rank 64 in float16 the two published files have 2 bytes for each of these numbers (paper: 67.5 M, 197 M)."""
    abstract = unet(UNETS[name]).abstract()
    targeted = lora.targeted(abstract, LoraConfig())
    tree = jax.eval_shape(lambda key: lora.init(key, abstract, LoraConfig(64)), jax.random.key(0))
    assert len(targeted) == modules and sum(leaf.size for leaf in jax.tree.leaves(tree)) == numbers
    ends = tuple(f"/{target.replace('.', '/')}" for target in PUBLISHED_TARGETS)
    kernels = {"/".join(path[:-1]) for path in flatten(abstract) if path[-1] == "kernel"}
    assert set(targeted) == {path for path in kernels if path.endswith(ends)}


@pytest.fixture(scope="module")
def base():
    return params_of("lcm")


CONFIG = LoraConfig(rank=3, alpha=2.0)


@pytest.fixture(scope="module")
def fresh(base):
    return lora.init(jax.random.key(0), base, CONFIG)


def test_new_adapters_leave_the_network_as_it_is_bit_for_bit(base, fresh):
    merged = lora.merge(base, fresh, CONFIG.alpha)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a).view("u4"), b.view("u4")), merged, base)
    np.testing.assert_array_equal(run("lcm", merged), run("lcm", base))


def test_new_adapters_are_drawn_as_pefts(base):
    tree = lora.init(jax.random.key(0), base, LoraConfig(rank=64, targets=("mid_block/resnets/0/conv1",)))
    pair = tree["mid_block"]["resnets"]["0"]["conv1"]
    down = np.asarray(pair["down"])
    assert down.shape == (3, 3, 32, 64) and pair["up"].shape == (1, 1, 64, 32) and not pair["up"].any()
    bound = 1 / np.sqrt(9 * 32)  # kaiming_uniform_(a=sqrt(5)): sqrt(6 / (1 + 5) / fan in)
    assert np.abs(down).max() == pytest.approx(bound, rel=1e-3)
    assert down.std() == pytest.approx(bound / np.sqrt(3), rel=0.02) and abs(down.mean()) < 0.02 * bound


def test_no_two_modules_start_alike(base, fresh):
    downs = [np.ravel(leaf)[:32] for path, leaf in flatten(fresh).items() if path[-1] == "down"]
    assert len({tuple(x / np.abs(x).max()) for x in downs}) == len(downs)
    other = lora.init(jax.random.key(1), base, CONFIG)
    for path, leaf in flatten(fresh).items():
        assert path[-1] == "up" or relative(flatten(other)[path], leaf) > 0.5


def test_strength_zero_is_the_base(base):
    merged = lora.merge(base, drawn(base, CONFIG), CONFIG.alpha, 0.0)
    jax.tree.map(np.testing.assert_array_equal, merged, base)


def test_combining_adds_the_deltas(base):
    (style, a), (lcm, b) = parts_of(base).values()
    both = lora.combine(base, [(style, a, 0.8), (lcm, b, 1.0)])
    first, second = deltas(style, a), deltas(lcm, b)
    assert first.keys() == second.keys()
    for path, leaf in flatten(both).items():
        wanted = flatten(base)[path].astype(np.float64)
        if path in first:
            wanted = wanted + 0.8 * first[path] + second[path]
        np.testing.assert_allclose(leaf, wanted, atol=1e-6)
    one_by_one = lora.merge(lora.merge(base, style, a, 0.8), lcm, b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), both, one_by_one)


def test_adapters_of_different_modules_combine(base):
    q = drawn(base, LoraConfig(2, 2, targets=("to_q",)))
    conv = drawn(base, LoraConfig(3, 3, targets=("mid_block/resnets/0/conv1",)))
    both = lora.combine(base, [(q, 2, 1.0), (conv, 3, 1.0)])
    changed = {path for path, leaf in flatten(both).items() if not np.array_equal(leaf, flatten(base)[path])}
    assert changed == set(deltas(q, 2)) | set(deltas(conv, 3))


def test_what_is_added_is_the_product_of_the_factors_times_alpha_over_rank():
    down, up = np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(2, 4)
    added = lambda pair, alpha: lora.merge(  # noqa: E731
        {"a": {"kernel": np.zeros((*pair["down"].shape[:-1], 4), np.float32)}}, {"a": pair}, alpha
    )["a"]["kernel"]
    np.testing.assert_array_equal(added({"down": down, "up": up}, 6.0), 3 * down @ up)
    conv = {"down": np.arange(36.0).reshape(2, 3, 3, 2), "up": up[None, None]}
    np.testing.assert_array_equal(added(conv, {"a": 1.0}), 0.5 * np.einsum("hwir,ro->hwio", conv["down"], up))


def test_the_opposite_strength_gives_the_base_back_to_rounding(base):
    adapters = drawn(base, CONFIG)
    merged = lora.merge(base, adapters, CONFIG.alpha, 0.7)
    back = lora.merge(merged, adapters, CONFIG.alpha, -0.7)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-7), back, base)
    assert (
        relative(
            merged["mid_block"]["resnets"]["0"]["conv1"]["kernel"], base["mid_block"]["resnets"]["0"]["conv1"]["kernel"]
        )
        > 0.1
    )


def test_only_adapted_kernels_are_new(base, fresh):
    before = jax.tree.map(np.copy, base)
    merged = flatten(lora.merge(base, fresh, CONFIG.alpha))
    adapted = {(*path.split("/"), "kernel") for path in lora.targeted(base, CONFIG)}
    assert all((merged[path] is leaf) == (path not in adapted) for path, leaf in flatten(base).items())
    jax.tree.map(np.testing.assert_array_equal, before, base)


@pytest.fixture(scope="module")
def gradient(base):
    """adapters -> the gradient of a loss by them, and by the merged kernels."""
    net, inputs = unet(cases.UNETS["lcm"][0]), cases.unet_inputs("lcm")
    z, t, context = (jnp.asarray(inputs[k], d) for k, d in (("z", "float32"), ("t", "int32"), ("context", "float32")))

    def loss(adapters, extra):
        params = jax.tree.map(jnp.add, lora.merge(base, adapters, CONFIG.alpha), extra)
        return jnp.square(net.apply(params, z, t, context)).mean()

    zero = jax.tree.map(np.zeros_like, base)
    by_both = jax.jit(jax.grad(loss, (0, 1)))
    return lambda adapters: by_both(adapters, zero)


def test_gradients_reach_down_and_up_by_the_chain_rule(base, gradient):
    """d down = s G up^T and d up = s down^T G, with G the gradient by the merged kernel."""
    adapters, scale = drawn(base, CONFIG), CONFIG.alpha / CONFIG.rank
    grads, whole = gradient(adapters)
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    own, grads, whole = flatten(adapters), flatten(grads), flatten(whole)
    for module in {path[:-1] for path in own}:
        g = np.asarray(whole[(*module, "kernel")], np.float64)
        down, up = (own[(*module, part)] for part in ("down", "up"))
        up = up.reshape(up.shape[-2:])
        wanted_up = scale * down.reshape(-1, down.shape[-1]).T @ g.reshape(-1, g.shape[-1])
        assert relative(grads[(*module, "down")], scale * g @ up.T) < 1e-4
        assert relative(np.asarray(grads[(*module, "up")]).reshape(up.shape), wanted_up) < 1e-4


def test_the_first_gradient_moves_up_alone(fresh, gradient):
    """With up at zero nothing reaches down, and everything reaches up."""
    for path, grad in flatten(gradient(fresh)[0]).items():
        assert (np.abs(grad).max() > 0) == (path[-1] == "up"), path


def test_strength_may_be_traced(base):
    adapters = drawn(base, CONFIG)
    merge = jax.jit(lambda strength: lora.merge(base, adapters, CONFIG.alpha, strength))
    want = lora.merge(base, adapters, CONFIG.alpha, 0.3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merge(0.3), want)


MIDDLE = LoraConfig(rank=3, alpha=2.0, targets=("mid_block/resnets/0/(conv1|time_emb_proj)",))


def test_half_precision_kernels_keep_their_type_and_are_rounded_once(base):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base)
    adapters = drawn(base, MIDDLE)
    merged = lora.merge(half, adapters, MIDDLE.alpha)
    exact = lora.merge(jax.tree.map(lambda x: x.astype(np.float32), half), adapters, MIDDLE.alpha)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(jnp.bfloat16)), merged, exact)
    new = jax.eval_shape(lambda key: lora.init(key, half, CONFIG), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(new)} == {jnp.dtype("float32")}


def test_double_precision_stays():
    with jax.enable_x64(True):
        double = params_of("lcm", "float64")
        adapters = drawn(double, MIDDLE)
        block = lambda tree: tree["mid_block"]["resnets"]["0"]["conv1"]
        change = 2 / 3 * np.tensordot(block(adapters)["down"], block(adapters)["up"][0, 0], 1)
        merged = block(lora.merge(double, adapters, MIDDLE.alpha))["kernel"]
        np.testing.assert_allclose(merged, block(double)["kernel"] + change, rtol=1e-12)


def test_errors_say_what_does_not_fit(base):
    with pytest.raises(ValueError, match="lora.rank is 0"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match="lora.alpha is 0"):
        LoraConfig(alpha=0)
    with pytest.raises(ValueError, match="no regular expression"):
        LoraConfig(targets=("to_(q",))
    with pytest.raises(ValueError, match="'to_z', which matches no kernel: there are .* and [0-9]+ more"):
        lora.init(jax.random.key(0), base, LoraConfig(targets=("to_q", "to_z")))
    with pytest.raises(ValueError, match="'conv_norm_out', which matches no kernel"):  # no kernel to adapt
        lora.init(jax.random.key(0), base, LoraConfig(targets=("conv_norm_out",)))
    pair = {"down": np.ones((4, 2)), "up": np.ones((2, 4))}
    with pytest.raises(ValueError, match="the network lacks 2 of 2 adapted modules: a/b, conv_in/c"):
        lora.merge(base, {"a": {"b": pair}, "conv_in": {"c": pair}}, 1.0)
    with pytest.raises(ValueError, match=r"conv_in has a kernel \(3, 3, 4, 16\), which down \(4, 2\) and up \(2, 4\)"):
        lora.merge(base, {"conv_in": pair}, 1.0)
    with pytest.raises(ValueError, match="alpha lacks conv_in"):
        lora.merge(base, {"conv_in": pair}, {})
    with pytest.raises(ValueError, match="conv_in/down is no part of an adapter"):
        lora.merge(base, {"conv_in": {"down": np.ones((4, 2))}}, 1.0)
