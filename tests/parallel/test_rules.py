import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.rules import fully_sharded, infer, replicated, with_shardings


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


TREE = {
    "conv": {"kernel": abstract(3, 3, 128, 256), "bias": abstract(256)},
    "proj": {"kernel": abstract(512, 128), "odd": abstract(129, 131), "square": abstract(256, 256)},
    "step": abstract(),
}


def test_fsdp_splits_the_largest_divisible_dim_and_leaves_small_tensors_whole():
    found = jax.tree.map(lambda s: s.spec, infer(TREE, "fsdp", make_mesh(data=2, fsdp=4)))
    assert found == {
        "conv": {"kernel": P(None, None, None, "fsdp"), "bias": P()},
        "proj": {"kernel": P("fsdp"), "odd": P(), "square": P(None, "fsdp")},
        "step": P(),
    }


@pytest.mark.parametrize("rules, mesh", [("replicate", dict(fsdp=4)), ("fsdp", dict(fsdp=1))])
def test_whole_copies(rules, mesh):
    assert all(s.spec == P() for s in jax.tree.leaves(infer(TREE, rules, make_mesh(**mesh))))


def test_an_fsdp_leaf_takes_a_quarter_of_the_memory_on_each_device():
    shardings = infer({"w": abstract(512, 128)}, "fsdp", make_mesh(data=2, fsdp=4))
    w = jax.jit(lambda: {"w": jnp.ones((512, 128))}, out_shardings=shardings)()["w"]
    assert {shard.data.shape for shard in w.addressable_shards} == {(128, 128)}


def test_the_first_matching_rule_decides():
    rules = (("proj/kernel$", replicated), (".*", fully_sharded))
    found = infer(TREE, rules, make_mesh(fsdp=4))
    assert found["proj"]["kernel"].spec == P()
    assert found["conv"]["kernel"].spec == P(None, None, None, "fsdp")


def test_unknown_rules_and_unmatched_leaves_are_named():
    with pytest.raises(KeyError, match="known: replicate, fsdp"):
        infer(TREE, "fdsp", make_mesh())
    with pytest.raises(ValueError, match="conv/"):
        infer(TREE, (("proj", replicated), ("step", replicated)), make_mesh())


def test_with_shardings_keeps_shape_and_dtype():
    shardings = infer(TREE, "fsdp", make_mesh(fsdp=8))
    leaf = with_shardings(TREE, shardings)["conv"]["kernel"]
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (
        (3, 3, 128, 256), jnp.float32, shardings["conv"]["kernel"],
    )  # fmt: skip
