"""The U-Net against diffusers (stored answers, and live where torch is installed), and what it promises itself."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from lcm_jax.models import unet as unet_file
from lcm_jax.models.presets import UNETS, named
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key

GOLDEN = Path(__file__).parents[1] / "golden"
STORED = np.load(GOLDEN / "diffusers.npz")
PUBLISHED = json.loads((GOLDEN / "published.json").read_text())
TINY = UNETS["tiny"]


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)


def run(name, dtype):
    cfg = replace(cases.UNETS[name][0], dtype=dtype)
    net, inputs = unet(cfg), cases.unet_inputs(name)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), net.abstract())
    names = {k: v.shape for k, v in to_torch(jax.tree.map(lambda x: np.empty(x.shape), abstract)).items()}
    params = from_torch(cases.fill(names), abstract)
    real = {k: jnp.asarray(v, dtype) for k, v in inputs.items() if k != "t"}
    return jax.jit(net.apply)(params, real.pop("z"), jnp.asarray(inputs["t"]), **real)


def tiny_inputs(b=2, size=8, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return draw(b, size, size, 4), jnp.asarray(rng.integers(0, 1000, b)), draw(b, 3, 16)


@pytest.mark.parametrize("name", cases.UNETS)
def test_stored_answers_of_diffusers(name):
    """float32 here against float64 there."""
    assert relative(run(name, "float32"), STORED[f"unet/{name}"]) < 1e-5


@pytest.mark.parametrize("name", cases.UNETS)
def test_stored_answers_in_double_precision(name, monkeypatch, agree):
    """Of the same float64 sinusoids of times and size ids, which both sides take in float32 otherwise."""
    given = cases.unet_inputs(name)
    times = {len(x): x for x in (given["t"], given.get("time_ids", np.zeros(0)).reshape(-1))}
    fed = lambda t, width: jnp.asarray(cases.sinusoids(times[len(t)], width))
    monkeypatch.setattr(unet_file, "time_features", fed)
    with jax.enable_x64(True):
        agree(f"U-Net of {name}'s kind, float64", relative(run(name, "float64"), STORED[f"unet/{name}"]), 1e-9)


@pytest.mark.parametrize("name", cases.UNETS)
def test_diffusers_itself(name, agree):
    pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    import torch
    from golden import reference

    theirs = reference.unet_output(name, torch.float32)
    agree(f"U-Net of {name}'s kind, float32", relative(run(name, "float32"), theirs), 1e-5)
    np.testing.assert_allclose(reference.unet_output(name), STORED[f"unet/{name}"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", cases.PUBLISHED_UNETS)
def test_presets_have_the_published_parameters(name):
    """Every name and shape of the published network, and no other."""
    flat = flatten(unet(UNETS[name]).abstract())
    assert sum(int(np.prod(leaf.shape)) for leaf in flat.values()) == PUBLISHED[name]["parameters"]
    assert len({torch_key(path) for path in flat}) == len(flat) == PUBLISHED[name]["tensors"]
    assert cases.digest(torch_shapes(flat)) == PUBLISHED[name]["sha256"]


def torch_shapes(flat):
    """Names and shapes as PyTorch has them: the last two dims of a kernel come first, swapped."""
    turn = lambda path, s: (s[-1], s[-2], *s[:-2]) if path[-1] == "kernel" else s
    return {torch_key(path): turn(path, leaf.shape) for path, leaf in flat.items()}


def test_weights_survive_the_way_to_pytorch_and_back():
    net = unet(UNetConfig((16, 32), (False, True), (1, 1), (2, 2), 1, context_width=8, w_width=6, norm_groups=8))
    params = net.init(jax.random.key(0))
    back = from_torch(to_torch(params), net.abstract())
    jax.tree.map(np.testing.assert_array_equal, params, back)


def test_the_student_starts_as_its_teacher():
    """Its guidance map starts at zero, so any w leaves the teacher's answer as it is."""
    teacher, student = unet(TINY), unet(replace(TINY, w_width=12))
    params, (z, t, context) = student.init(jax.random.key(1)), tiny_inputs()
    w_features = jax.random.normal(jax.random.key(2), (2, 12))
    assert not params["time_embedding"]["cond_proj"]["kernel"].any()
    guided = student.apply(params, z, t, context, w_features)
    assert relative(guided, teacher.apply(params, z, t, context)) < 1e-6  # another program may round otherwise

    kernel = 0.1 * jax.random.normal(jax.random.key(3), (12, 32))
    params["time_embedding"]["cond_proj"]["kernel"] = kernel
    assert relative(student.apply(params, z, t, context, w_features), guided) > 1e-3


def test_the_map_of_guidance_learns_from_its_first_step():
    net = unet(replace(TINY, w_width=12))
    params, (z, t, context) = net.init(jax.random.key(1)), tiny_inputs()
    w_features = jax.random.normal(jax.random.key(2), (2, 12))
    grad = jax.grad(lambda p: jnp.square(net.apply(p, z, t, context, w_features)).mean())(params)
    assert jnp.abs(grad["time_embedding"]["cond_proj"]["kernel"]).max() > 1e-6


def test_rematerialisation_changes_neither_loss_nor_gradients():
    one_level = replace(TINY, channels=(32,), attention=(True,), depth=(1,), heads=(2,), layers=1)
    params, (z, t, context) = unet(one_level).init(jax.random.key(0)), tiny_inputs()

    def loss_of(remat):
        net = unet(replace(one_level, remat=remat))
        return lambda p: jnp.square(net.apply(p, z, t, context)).mean()

    found = {remat: jax.jit(jax.value_and_grad(loss_of(remat)))(params) for remat in ("none", "block", "dots")}
    marked = lambda remat: str(jax.make_jaxpr(loss_of(remat))(params)).count("prevent_cse")
    assert marked("none") == 0
    for remat in ("block", "dots"):
        (plain, grads), (again, regrads) = found["none"], found[remat]
        assert marked(remat) >= 4  # down, in the middle, and twice up
        assert float(again) == pytest.approx(float(plain), rel=1e-6)
        for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(regrads), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6 + 1e-5 * np.abs(a).max())


def test_half_precision_computes_and_keeps_float32_parameters():
    net = unet(replace(TINY, dtype="bfloat16"))
    params, (z, t, context) = net.init(jax.random.key(0)), tiny_inputs()
    loss = lambda p: jnp.square(net.apply(p, z, t, context)).mean()
    jaxpr = str(jax.make_jaxpr(loss)(params))
    grads = jax.jit(jax.grad(loss))(params)
    assert "bf16[3,3,32,64]" in jaxpr  # kernels are cast on the way in
    assert {x.dtype for x in jax.tree.leaves((params, grads))} == {jnp.dtype("float32")}
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))
    out = net.apply(params, z, t, context)
    assert out.dtype == jnp.float32
    assert 0 < relative(out, unet(TINY).apply(params, z, t, context)) < 0.05


def test_late_times_stay_apart_in_half_precision():
    """998 and 999 are one number in bfloat16; the sinusoids are taken before the cast."""
    net = unet(replace(TINY, dtype="bfloat16"))
    params, (z, _, context) = net.init(jax.random.key(0)), tiny_inputs()
    at = lambda t: np.asarray(net.apply(params, z, jnp.full((2,), t), context))
    assert relative(at(998), at(999)) > 1e-4


def test_no_sample_sees_its_neighbours():
    net = unet(TINY)
    params, (z, t, context) = net.init(jax.random.key(0)), tiny_inputs(b=3)
    alone = net.apply(params, z[1:2], t[1:2], context[1:2])
    np.testing.assert_allclose(net.apply(params, z, t, context)[1:2], alone, atol=2e-5)


def test_errors_say_what_to_change():
    with pytest.raises(ValueError, match="unet.heads has 1 entries, channels has 2"):
        replace(TINY, heads=(2,))
    with pytest.raises(ValueError, match="choose 'none' or 'block'"):
        replace(TINY, remat="all")
    with pytest.raises(ValueError, match="unknown preset 'sd3'; choose one of emoji, noto, tiny, sd15"):
        named(UNETS, "sd3")
    with pytest.raises(ValueError, match="does not split into 3 heads"):
        unet(replace(TINY, heads=(3, 3)))
    with pytest.raises(ValueError, match="norm_groups"):
        unet(replace(TINY, norm_groups=7))
    net = unet(TINY)
    params, (z, t, context) = net.init(jax.random.key(0)), tiny_inputs()
    with pytest.raises(ValueError, match="w_width"):
        net.apply(params, z, t, context, jnp.ones((2, 12)))
    with pytest.raises(ValueError, match="latent has 3 channels, this U-Net takes 4"):
        net.apply(params, z[..., :3], t, context)
    with pytest.raises(ValueError, match="context is 8 wide, this U-Net takes 16"):
        net.apply(params, z, t, context[..., :8])
    sized = unet(cases.UNETS["sdxl"][0])
    with pytest.raises(ValueError, match="added"):
        sized.apply(sized.init(jax.random.key(0)), z, t, jnp.ones((2, 3, 24)))
