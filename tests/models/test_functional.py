"""What turns a module into pure functions: trees that agree, names in errors, keys without a counter array."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lcm_jax.models import presets
from lcm_jax.models.dit import dit
from lcm_jax.models.functional import Keys, functional


class Inner(nnx.Module):
    """A linear map with a vector beside it."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.offset = nnx.Param(jnp.full((4,), 2.0))


class Module(nnx.Module):
    """Two parts in a list, and two methods."""

    def __init__(self, rngs):
        self.parts = nnx.List([Inner(rngs), Inner(rngs)])

    def __call__(self, x, weight=1.0):
        return sum(weight * part.linear(x) + part.offset[None] for part in self.parts)

    def first(self, x):
        return self.parts[0].linear(x)


NET = functional(Module, config="kept")
X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)


def test_parameters_are_nested_dicts_with_string_keys():
    params = NET.init(jax.random.key(0))
    assert set(params) == {"parts"} and set(params["parts"]) == {"0", "1"}
    assert set(params["parts"]["1"]) == {"linear", "offset"}
    assert set(params["parts"]["1"]["linear"]) == {"kernel", "bias"}
    assert NET.config == "kept"


def test_abstract_is_the_tree_of_init_with_nothing_in_it():
    params, abstract = NET.init(jax.random.key(0)), NET.abstract()
    assert jax.tree.structure(params) == jax.tree.structure(abstract)
    for leaf, promised in zip(jax.tree.leaves(params), jax.tree.leaves(abstract), strict=True):
        assert isinstance(promised, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (promised.shape, promised.dtype)


def test_a_network_of_any_size_is_described_without_memory():
    huge = functional(lambda rngs: nnx.Linear(10**6, 10**6, rngs=rngs))  # 4 TB
    assert huge.abstract()["kernel"].shape == (10**6, 10**6)


def test_apply_computes_with_the_parameters_it_is_given():
    params = NET.init(jax.random.key(0))
    maps = [params["parts"][i]["linear"] for i in "01"]
    want = sum(X @ m["kernel"] + m["bias"][None] for m in maps)
    np.testing.assert_allclose(NET.apply(params, X), want + 4.0, atol=1e-6)
    np.testing.assert_allclose(NET.apply(params, X, weight=3.0), 3 * want + 4.0, atol=1e-5)
    on_host = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), params)
    np.testing.assert_allclose(NET.apply(on_host, X), 2 * want + 8.0, atol=1e-6)
    first = X @ maps[0]["kernel"] + maps[0]["bias"][None]
    np.testing.assert_allclose(NET.apply(params, X, method="first"), first, atol=1e-6)


def test_gradients_have_the_tree_of_the_parameters():
    params = NET.init(jax.random.key(0))
    grads = jax.jit(jax.grad(lambda p: NET.apply(p, X).sum()))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    np.testing.assert_array_equal(grads["parts"]["1"]["offset"], 2.0)
    kernel = grads["parts"]["0"]["linear"]["kernel"]
    np.testing.assert_allclose(kernel, np.broadcast_to(X.sum(0)[:, None], (3, 4)), atol=1e-6)


def test_weights_drawn_under_jit_are_those_drawn_outside():
    jax.tree.map(np.testing.assert_array_equal, NET.init(jax.random.key(3)), jax.jit(NET.init)(jax.random.key(3)))


def test_a_key_decides_the_weights_and_parts_differ():
    params, again, other = (NET.init(jax.random.key(seed))["parts"] for seed in (0, 0, 1))
    kernel = params["0"]["linear"]["kernel"]
    np.testing.assert_array_equal(kernel, again["0"]["linear"]["kernel"])
    assert jnp.abs(kernel - params["1"]["linear"]["kernel"]).max() > 0.1
    assert jnp.abs(kernel - other["0"]["linear"]["kernel"]).max() > 0.1


def test_a_network_of_one_config_is_traced_once():
    cfg = presets.DITS["dit_tiny"]
    one, again, other = dit(cfg), dit(replace(cfg)), dit(replace(cfg, width=8))
    assert one is again and one is not other
    params, x = one.init(jax.random.key(0)), jnp.zeros((1, 4, 4, 4))
    before = one.apply._cache_size()
    for net in (one, again):
        net.apply(params, x, jnp.zeros(1))
    assert one.apply._cache_size() == before + 1


def test_keys_are_those_that_flax_draws():
    ours, theirs = Keys(jax.random.key(5)), nnx.Rngs(jax.random.key(5))
    for _ in range(3):
        assert ours.params() == theirs.params()


@pytest.mark.parametrize(
    "path, message",
    [
        (("parts", "1", "linear", "bias"), "parts/1/linear/bias is missing: nothing named 'bias' under parts/1/linear"),
        (("parts", "1"), "nothing named 1 under parts"),
        (("parts",), "nothing named 'parts' under the root"),
    ],
)
def test_a_missing_parameter_is_named(path, message):
    params = NET.init(jax.random.key(0))
    node = params
    for name in path[:-1]:
        node = node[name]
    del node[path[-1]]
    with pytest.raises(KeyError) as raised:
        NET.apply(params, X)
    assert message in str(raised.value) and "belong to another network" in str(raised.value)
