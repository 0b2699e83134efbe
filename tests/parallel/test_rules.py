import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from lcm_jax.models import presets
from lcm_jax.models.adm import adm
from lcm_jax.models.autoencoder import autoencoder
from lcm_jax.models.clip_text import CLIP_TEXT, clip_text
from lcm_jax.models.dit import dit
from lcm_jax.models.lora import LoraConfig
from lcm_jax.models.lora import init as lora_init
from lcm_jax.models.unet import unet
from lcm_jax.parallel import rules as module
from lcm_jax.parallel.mesh import AXES, make_mesh
from lcm_jax.parallel.rules import RULES, by_tree, infer, left_whole, path_of, with_shardings
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.state import State


def abstract(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


TREE = {
    "conv": {"kernel": abstract(3, 3, 128, 256), "bias": abstract(256)},
    "proj": {"kernel": abstract(512, 128), "odd": abstract(129, 131), "square": abstract(256, 256)},
    "step": abstract(),
}


def specs(tree, rules, mesh):
    return jax.tree.map(lambda s: s.spec, infer(tree, rules, mesh))


def test_fsdp_splits_the_largest_divisible_dim_and_leaves_small_tensors_whole():
    assert specs(TREE, "fsdp", make_mesh(data=2, fsdp=4)) == {
        "conv": {"kernel": P(None, None, None, "fsdp"), "bias": P()},
        "proj": {"kernel": P("fsdp"), "odd": P(), "square": P(None, "fsdp")},
        "step": P(),
    }


@pytest.mark.parametrize("rules, mesh", [("replicate", dict(fsdp=4)), ("fsdp", dict(fsdp=1)), ("tensor", dict(fsdp=4))])
def test_whole_copies(rules, mesh):
    assert all(s.spec == P() for s in jax.tree.leaves(infer(TREE, rules, make_mesh(**mesh))))


def test_an_fsdp_leaf_takes_a_quarter_of_the_memory_on_each_device():
    shardings = infer({"w": abstract(512, 128)}, "fsdp", make_mesh(data=2, fsdp=4))
    w = jax.jit(lambda: {"w": jnp.ones((512, 128))}, out_shardings=shardings)()["w"]
    assert {shard.data.shape for shard in w.addressable_shards} == {(128, 128)}


def test_zero_splits_over_data_and_fsdp_together_or_over_one_of_them():
    mesh = make_mesh(data=4, fsdp=2)
    tree = {"both": abstract(128, 256), "four": abstract(4, 8191), "none": abstract(129, 129)}
    assert specs(tree, "zero", mesh) == {"both": P(None, ("data", "fsdp")), "four": P("data"), "none": P()}


def test_tensor_rules_keep_heads_and_hidden_units_on_their_device():
    """What widens is split by its outputs, what narrows again by its inputs; fsdp takes what is left."""
    tree = {
        "attn1": {"to_q": {"kernel": abstract(128, 128)}, "to_out": {"0": {"kernel": abstract(128, 128)}}},
        "ff": {"net": {"0": {"proj": {"kernel": abstract(128, 1024)}}, "2": {"kernel": abstract(512, 128)}}},
        "resnets": {"0": {"conv1": {"kernel": abstract(3, 3, 64, 128)}, "conv2": {"kernel": abstract(3, 3, 128, 64)}}},
    }
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    narrow, wide = P("tensor"), P(None, "tensor")
    assert specs(tree, "tensor", mesh) == {
        "attn1": {"to_q": {"kernel": wide}, "to_out": {"0": {"kernel": narrow}}},
        "ff": {"net": {"0": {"proj": {"kernel": wide}}, "2": {"kernel": narrow}}},
        "resnets": {
            "0": {"conv1": {"kernel": P(None, None, None, "tensor")}, "conv2": {"kernel": P(None, None, "tensor")}}
        },
    }
    both = specs(tree, "fsdp_tensor", mesh)
    assert both["attn1"]["to_q"]["kernel"] == P("fsdp", "tensor")
    assert both["ff"]["net"]["2"]["kernel"] == P(("tensor", "fsdp"))
    assert both["resnets"]["0"]["conv1"]["kernel"] == P(None, None, "fsdp", "tensor")
    # Outputs that do not divide: the largest dim that does.
    assert specs({"kernel": abstract(128, 129)}, "tensor", mesh) == {"kernel": P("tensor")}


NETWORKS = {
    **{f"unet {name}": (unet, replace(sizes, w_width=256)) for name, sizes in presets.UNETS.items()},
    **{f"levels {name}": (dit if name in presets.DITS else adm, s) for name, s in presets.NOISE_NETWORKS.items()},
    **{f"autoencoder {name}": (autoencoder, sizes) for name, sizes in presets.AUTOENCODERS.items()},
    **{f"text {name}": (clip_text, sizes) for name, sizes in CLIP_TEXT.items()},
}


def test_no_tensor_is_split_by_tensor_before_fsdp():
    """XLA would compute something else: see spec_of."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    for shape in ((128, 128), (512, 64), (64, 512), (3, 3, 64, 256), (130, 127), (127, 130)):
        for path in ("to_q/kernel", "to_out/0/kernel", "resnets/0/conv2/kernel"):
            spec = infer({path: abstract(*shape)}, "fsdp_tensor", mesh)[path].spec
            used = [axis for over in spec if over for axis in ((over,) if isinstance(over, str) else over)]
            dims = {axis: i for i, over in enumerate(spec) for axis in (over or ()) if axis in mesh.shape}
            dims |= {over: i for i, over in enumerate(spec) if isinstance(over, str)}
            assert "tensor" in used and dims.get("fsdp", 0) <= dims["tensor"], (path, shape, spec)


@functools.cache
def tree_of(name):
    build, sizes = NETWORKS[name]
    return build(sizes).abstract()


MESHES = {"fsdp": dict(fsdp=8), "tensor": dict(tensor=8), "zero": {}, "fsdp_tensor": dict(data=2, fsdp=2, tensor=2)}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_of_every_preset_is_split_evenly_or_whole_for_a_reason(name):
    tree = tree_of(name)
    for rules in RULES:
        mesh = make_mesh(**MESHES.get(rules, {}))
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        for (path, leaf), sharding in zip(leaves, jax.tree.leaves(infer(tree, rules, mesh)), strict=True):
            shard = sharding.shard_shape(leaf.shape)  # raises where a dim does not divide
            if rules != "replicate" and leaf.size >= module.LARGE:
                assert shard != leaf.shape, (path_of(path), leaf.shape)


@pytest.mark.parametrize("devices", [16, 64])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith(("unet sd", "text"))])
def test_nothing_large_of_stable_diffusion_is_whole_on_a_pod(name, devices):
    mesh = AbstractMesh((1, devices, 1), AXES)
    assert left_whole(tree_of(name), "fsdp", mesh) == {}


def test_over_256_devices_some_convolutions_would_be_whole():
    """Why the presets split over 64 at most."""
    whole = left_whole(tree_of("unet sd15"), "fsdp", AbstractMesh((1, 256, 1), AXES))
    assert whole and all(path.endswith("/kernel") for path in whole)


def test_modules_that_narrow_are_found_in_the_networks_by_their_names():
    """A renamed module would only be split differently, and cost communication: nothing else would notice."""
    found = {}
    for name in ("unet sdxl", "levels latent32", "levels dit_b2", "autoencoder sd", "text sdxl2"):
        paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree_of(name))]
        matches = [re.search(module.NARROWS, path) for path in paths]
        found[name] = {re.sub(r"\d+", "N", match.group(0)) for match in matches if match}
    assert found == {
        "unet sdxl": {"to_out/N/kernel", "ff/net/N/kernel", "resnets/N/convN/kernel"},
        "levels latent32": {f"{at}/N/{of}/kernel" for at in ("down", "middle", "up") for of in ("convN", "proj")},
        "levels dit_b2": {"blocks/N/proj/kernel", "blocks/N/fcN/kernel"},
        "autoencoder sd": {"to_out/N/kernel", "resnets/N/convN/kernel"},
        "text sdxl2": {"out_proj/kernel", "mlp/fcN/kernel"},
    }  # fmt: skip


def test_each_tree_of_a_state_has_its_rules():
    chosen = by_tree("fsdp", {"ema": "replicate", "teacher": "tensor"})
    assert chosen == {
        "params": "fsdp", "target": "fsdp", "ema": "replicate", "opt_state": "fsdp", "teacher": "tensor",
    }  # fmt: skip
    params = {"kernel": abstract(128, 256)}
    moments = jax.eval_shape(optimizer("adamw", 1e-3).init, params)
    state = State(abstract(), params, params, params, moments)
    placed = infer(state, by_tree("zero", {}), make_mesh(data=4, fsdp=2))
    assert (placed.params["kernel"].spec, placed.ema["kernel"].spec) == (P(), P(None, ("data", "fsdp")))
    parts = {s.spec for s in jax.tree.leaves(placed.opt_state)}
    assert parts == {P(), P(None, ("data", "fsdp"))}  # the count is whole
    assert placed.step.spec == P()
    assert by_tree("zero", {"teacher": "fsdp"})["teacher"] == "fsdp"


def test_adapters_are_split_as_what_they_adapt():
    config = LoraConfig(rank=64, alpha=64)
    adapters = jax.eval_shape(lambda: lora_init(jax.random.key(0), tree_of("unet sd15"), config))
    for rules in ("fsdp", "tensor"):
        assert left_whole(adapters, rules, make_mesh(**MESHES[rules])) == {}


def test_large_tensors_left_whole_are_listed():
    big = {"a": abstract(1025, 1025), "b": abstract(1024, 1024), "c": abstract(3, 3)}
    mesh = make_mesh(data=1, fsdp=8)
    assert left_whole(big, "fsdp", mesh) == {"a": 4 * 1025**2}
    assert set(left_whole(big, "fsdp", make_mesh())) == {"a", "b"}  # the fsdp axis has one device
    assert left_whole(big, "replicate", mesh) == {}
    assert left_whole(big, "fsdp", make_mesh(devices=jax.devices()[:1])) == {}
    two = {"ema": big, "params": big}
    assert left_whole(two, {"ema": "fsdp", "params": "replicate"}, mesh) == {"ema/a": 4 * 1025**2}


def test_the_first_matching_rule_decides():
    rules = (("proj/kernel$", ()), (".*", ((None, "fsdp"),)))
    found = infer(TREE, rules, make_mesh(fsdp=4))
    assert found["proj"]["kernel"].spec == P()
    assert found["conv"]["kernel"].spec == P(None, None, None, "fsdp")


def test_unknown_rules_and_unmatched_leaves_are_named():
    known = "known: replicate, fsdp, zero, tensor, fsdp_tensor"
    with pytest.raises(KeyError, match=known):
        infer(TREE, "fdsp", make_mesh())
    for default, others in (("fdsp", {}), ("zero", {"ema": "x"})):
        with pytest.raises(KeyError, match=known):
            by_tree(default, others)
    with pytest.raises(ValueError, match="conv/"):
        infer(TREE, (("proj", ()), ("step", ())), make_mesh())


def test_with_shardings_keeps_shape_and_dtype():
    shardings = infer(TREE, "fsdp", make_mesh(fsdp=8))
    leaf = with_shardings(TREE, shardings)["conv"]["kernel"]
    assert (leaf.shape, leaf.dtype, leaf.sharding) == (
        (3, 3, 128, 256), jnp.float32, shardings["conv"]["kernel"],
    )  # fmt: skip
