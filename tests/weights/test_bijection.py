"""Names and layouts go to PyTorch's and back; whatever does not fit is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.models.text import TextConfig, text_encoder
from lcm_jax.models.vision import mobilenet_v2
from lcm_jax.weights.bijection import flatten, from_torch, to_torch, torch_key, unflatten

ABSTRACT = {
    "conv": {"0": {"kernel": jax.ShapeDtypeStruct((3, 3, 2, 5), jnp.float32)}},
    "lin": {
        "kernel": jax.ShapeDtypeStruct((2, 4), jnp.float32),
        "bias": jax.ShapeDtypeStruct((4,), jnp.float32),
    },
    "norm": {
        "scale": jax.ShapeDtypeStruct((4,), jnp.float32),
        "mean": jax.ShapeDtypeStruct((4,), jnp.float32),
    },
    "emb": {"embedding": jax.ShapeDtypeStruct((7, 4), jnp.float32)},
    "free": jax.ShapeDtypeStruct((2, 3), jnp.float32),
}


@pytest.fixture
def tensors():
    rng = np.random.default_rng(0)
    shapes = {
        "conv.0.weight": (5, 2, 3, 3),
        "lin.weight": (4, 2),
        "lin.bias": (4,),
        "norm.weight": (4,),
        "norm.running_mean": (4,),
        "emb.weight": (7, 4),
        "free": (2, 3),
    }
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def test_layouts_by_leaf(tensors):
    params = from_torch(tensors, ABSTRACT)
    # o, i, y, x -> y, x, i, o
    assert params["conv"]["0"]["kernel"][2, 1, 0, 4] == tensors["conv.0.weight"][4, 0, 2, 1]
    assert params["lin"]["kernel"][1, 3] == tensors["lin.weight"][3, 1]
    np.testing.assert_array_equal(params["emb"]["embedding"], tensors["emb.weight"])
    np.testing.assert_array_equal(params["free"], tensors["free"])


def test_there_and_back_is_the_same(tensors):
    back = to_torch(from_torch(tensors, ABSTRACT))
    assert back.keys() == tensors.keys()
    for key in tensors:
        np.testing.assert_array_equal(back[key], tensors[key])


@pytest.mark.parametrize("build", [lambda: text_encoder(TextConfig(layers=2)), mobilenet_v2])
def test_every_leaf_of_a_network_comes_back_to_its_place(build):
    abstract = build().abstract()
    # Every number of every leaf is different: any mix-up of leaves or axes shows.
    flat, start = {}, 0
    for path, leaf in flatten(abstract).items():
        size = int(np.prod(leaf.shape))
        flat[path] = np.arange(start, start + size, dtype=np.float64).reshape(leaf.shape)
        start += size
    wide = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), abstract)
    back = flatten(from_torch(to_torch(unflatten(flat)), wide))
    assert back.keys() == flat.keys()
    assert all(np.array_equal(back[path], flat[path]) for path in flat)


def test_names_are_the_references():
    assert torch_key(("a", "b", "0", "kernel")) == "a.b.0.weight"
    bert = {torch_key(path) for path in flatten(text_encoder().abstract())}
    assert {"embeddings.LayerNorm.weight", "encoder.layer.5.attention.self.query.bias"} < bert
    mobile = {torch_key(path) for path in flatten(mobilenet_v2().abstract())}
    assert {"features.0.1.running_var", "features.2.conv.1.0.weight", "classifier.1.weight"} < mobile


def test_values_take_the_leafs_type(tensors):
    half = {key: t.astype(np.float16) for key, t in tensors.items()}
    assert from_torch(half, ABSTRACT)["lin"]["kernel"].dtype == np.float32


def test_a_1x1_convolution_fills_a_linear_map(tensors):
    params = from_torch({**tensors, "lin.weight": tensors["lin.weight"][:, :, None, None]}, ABSTRACT)
    np.testing.assert_array_equal(params["lin"]["kernel"], tensors["lin.weight"].T)


def test_tensors_may_have_other_names(tensors):
    old = {f"model.{key}": t for key, t in tensors.items()}
    renamed = from_torch(old, ABSTRACT, rename="model.{}".format)
    jax.tree.map(np.testing.assert_array_equal, renamed, from_torch(tensors, ABSTRACT))


def test_everything_that_does_not_fit_is_named_at_once(tensors):
    del tensors["lin.bias"]
    tensors |= {"extra.weight": np.ones(1), "step": np.ones(()), "emb.weight": np.ones((8, 4))}
    with pytest.raises(ValueError) as caught:
        from_torch(tensors, ABSTRACT, ignore=("step",))
    message = str(caught.value)
    assert "1 missing: lin.bias" in message
    assert "1 unexpected: extra.weight" in message
    assert "emb.weight ((8, 4) here as embedding, network wants (7, 4))" in message
    assert "step" not in message


def test_ignoring_takes_whole_names_only(tensors):
    with pytest.raises(ValueError, match="unexpected: steps"):
        from_torch({**tensors, "steps": np.ones(())}, ABSTRACT, ignore=("step",))


def test_long_lists_are_cut(tensors):
    with pytest.raises(ValueError, match="7 missing: .* and 1 more"):
        from_torch({}, ABSTRACT)


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(ValueError, match="a/kernel and a/scale both become 'a.weight'"):
        to_torch({"a": {"kernel": np.ones((2, 2)), "scale": np.ones(2)}})
