"""Weights that lie in parts, as layers read them: whole, recomputed where blocks are, gradients in parts again."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.parallel import rules
from lcm_jax.parallel.collectives import collectives
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.reading import Reading, readings
from lcm_jax.parallel.transfer import batch_sharding

SIDE = 256
TREE = {"attn1": {"to_q": {"kernel": jnp.arange(float(SIDE * SIDE)).reshape(SIDE, SIDE) / SIDE**2}}}


@pytest.mark.parametrize(
    "sizes, name, wanted",
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp_tensor", P(None, "tensor")),
        ({"data": 2, "fsdp": 2, "tensor": 2}, "fsdp", P()),
        ({"data": 1, "fsdp": 8}, "fsdp", P()),
        ({"data": 8}, "zero", P()),
    ],
)
def test_what_lies_in_parts_is_read_whole_and_its_gradient_lies_in_parts_again(sizes, name, wanted):
    mesh = make_mesh(**sizes)
    split = rules.infer(TREE, name, mesh)
    placed, read = jax.device_put(TREE, split), Reading(name, mesh)
    kernel = lambda tree: tree["attn1"]["to_q"]["kernel"]
    assert not kernel(placed).is_fully_replicated
    out = kernel(jax.jit(read.tree)(placed))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, wanted), 2)
    np.testing.assert_array_equal(out, kernel(TREE))
    gradient = kernel(jax.jit(jax.grad(lambda tree: jnp.square(kernel(read.tree(tree))).sum()))(placed))
    assert gradient.sharding.is_equivalent_to(kernel(split), 2)
    np.testing.assert_array_equal(gradient, 2 * kernel(TREE))


def test_a_weight_is_sent_in_the_type_in_which_layers_compute():
    mesh = make_mesh(data=1, fsdp=8)
    split = rules.infer(TREE, "fsdp", mesh)
    placed, read = jax.device_put(TREE, split), Reading("fsdp", mesh, "bfloat16")
    seen = lambda tree: read("attn1/to_q/kernel", tree["attn1"]["to_q"]["kernel"])
    half = jax.jit(seen)(placed)
    assert half.dtype == jnp.bfloat16 and half.is_fully_replicated
    gradient = jax.jit(jax.grad(lambda tree: jnp.square(seen(tree).astype(jnp.float32)).sum()))(placed)
    kernel = gradient["attn1"]["to_q"]["kernel"]
    assert kernel.dtype == jnp.float32 and kernel.sharding.is_equivalent_to(split["attn1"]["to_q"]["kernel"], 2)
    np.testing.assert_array_equal(kernel, (2 * half.astype(jnp.float32)).astype(jnp.bfloat16).astype(jnp.float32))
    whole = jax.jit(read.tree)(placed)["attn1"]["to_q"]["kernel"]  # of what is merged before it is read
    assert whole.dtype == jnp.float32 and whole.is_fully_replicated
    made = readings(rules.by_tree("fsdp", {}), mesh, "bfloat16")
    assert {tree: r.dtype for tree, r in made.items()} == {
        tree: None if tree == "teacher" else "bfloat16" for tree in rules.TREES.values()
    }


def test_a_bias_of_a_map_is_sent_as_it_is():
    mesh = make_mesh(data=1, fsdp=8)
    bias = jax.device_put(jnp.ones((SIDE, SIDE)), rules.sharding_of("norm/bias", (SIDE, SIDE), "fsdp", mesh))
    sent = jax.jit(lambda bias: Reading("fsdp", mesh, "bfloat16")("norm/bias", bias))(bias)
    assert not bias.is_fully_replicated and sent.is_fully_replicated and sent.dtype == jnp.float32


def test_where_nothing_lies_in_parts_nothing_is_done():
    names = rules.by_tree("fsdp", {})
    assert readings(names, make_mesh()) == {}
    assert readings(names, make_mesh(data=4, tensor=2)) == {}
    assert readings(rules.by_tree("zero", {}), make_mesh(devices=jax.devices()[:1])) == {}
    assert set(readings(rules.by_tree("zero", {}), make_mesh())) == set(rules.TREES.values())
    whole = jnp.ones((SIDE, SIDE))
    assert Reading("replicate", make_mesh(data=1, fsdp=8))("a", whole) is whole
    assert Reading("tensor", make_mesh(data=4, tensor=2))("a", whole) is whole


def test_a_recomputed_block_gathers_its_weights_again(monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 2**9)
    mesh = make_mesh(data=1, fsdp=8)
    counts = {}
    for remat in ("none", "block"):
        sizes = {"channels": (32,), "attention": (False,), "depth": (1,), "heads": (1,), "layers": 1, "norm_groups": 8}
        net = unet(UNetConfig(**sizes, context_width=16, remat=remat))
        params = rules.with_shardings(net.abstract(), rules.infer(net.abstract(), "fsdp", mesh))
        z = jax.ShapeDtypeStruct((8, 4, 4, 4), jnp.float32, sharding=batch_sharding(mesh))
        context = jax.ShapeDtypeStruct((8, 3, 16), jnp.float32, sharding=batch_sharding(mesh))
        t = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=batch_sharding(mesh))
        apply = partial(net.apply, read=Reading("fsdp", mesh))
        loss = lambda p, *told, apply=apply: jnp.square(apply(p, *told)).mean()
        found = collectives(jax.jit(jax.grad(loss)).lower(params, z, t, context).compile().as_text(), 8)
        assert set(found) <= {"all-gather", "all-reduce", "reduce-scatter"}  # activations stay with their samples
        counts[remat] = found["all-gather"].count
    split = sum(not s.is_fully_replicated for s in jax.tree.leaves(rules.infer(net.abstract(), "fsdp", mesh)))
    assert counts["none"] >= split > 5
    assert counts["block"] > counts["none"]
