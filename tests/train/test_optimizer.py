"""Optimisers and rates against their definitions in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lcm_jax.train.optimizer import UNUSED, clipped, learning_rate, optimizer

RATE, DECAY = 0.1, 0.3


def walk(tx, steps=8):
    """Where the parameters go under gradients 2 p + step."""
    p = jnp.array([1.0, -2.0, 0.5])
    state = tx.init(p)
    for i in range(steps):
        update, state = tx.update(2 * p + i, state, p)
        p = p + update
    return np.asarray(p)


def reference(rule, steps=8):
    p, memory = np.array([1.0, -2.0, 0.5]), {}
    for i in range(steps):
        p = rule(p, 2 * p + i, i + 1, memory)
    return p


def moments(g, memory, b1=0.9, b2=0.999):
    memory["m"] = b1 * memory.get("m", 0) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0) + (1 - b2) * g**2
    return memory["m"], memory["v"]


def adamw(p, g, n, memory):
    m, v = moments(g, memory)
    step = (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
    return p - RATE * (step + DECAY * p)  # decay beside the moments


def radam(p, g, n, memory):
    """arXiv 1908.03265, Alg. 2, with the decay inside the gradient."""
    m, v = moments(g + DECAY * p, memory)
    most = 2 / (1 - 0.999) - 1
    rho = most - 2 * n * 0.999**n / (1 - 0.999**n)
    m = m / (1 - 0.9**n)
    if rho < 5:
        return p - RATE * m
    rectify = np.sqrt((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho))
    return p - RATE * rectify * m / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)


def sgd(p, g, n, memory):
    return p - RATE * (g + DECAY * p)


@pytest.mark.parametrize("name, rule", [("adamw", adamw), ("radam", radam), ("sgd", sgd)])
def test_against_the_definition(name, rule):
    with jax.enable_x64(True):  # 1 - b2^n loses four digits in float32
        np.testing.assert_allclose(walk(optimizer(name, RATE, weight_decay=DECAY)), reference(rule), rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "radam", "sgd", "adafactor", "muon"])
def test_what_is_without_effect_is_known(name):
    for setting, value in (("b1", 0.5), ("b2", 0.6), ("eps", 0.7), ("weight_decay", 0.5), ("clip", 0.1)):
        same = np.array_equal(walk(optimizer(name, RATE, **{setting: value})), walk(optimizer(name, RATE)))
        assert same == (setting in UNUSED.get(name, ()))


def test_adafactor_goes_downhill():
    tx = optimizer("adafactor", 0.05)
    p = jnp.full((8, 8), 3.0)
    state = tx.init(p)
    for _ in range(20):
        update, state = tx.update(2 * p, state, p)
        p = p + update
    assert jnp.abs(p).max() < 2.5


def test_adafactor_keeps_vectors_for_matrices_and_decays_at_the_rate():
    """arXiv 1804.04235, Alg. 4, at the first step: decay 0, so the moments are the gradient's own."""
    rng = np.random.default_rng(0)
    p, g = (rng.standard_normal((128, 160)).astype(np.float32) for _ in range(2))
    tx = optimizer("adafactor", RATE, weight_decay=DECAY)
    state = tx.init({"kernel": jnp.asarray(p)})
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 300  # of 20,480 numbers
    update, _ = tx.update({"kernel": jnp.asarray(g)}, state, {"kernel": jnp.asarray(p)})
    rows, columns = np.square(g).mean(1, keepdims=True), np.square(g).mean(0, keepdims=True)
    step = g / np.sqrt(rows * columns / rows.mean())
    rms = lambda x: np.sqrt(np.square(x).mean())
    expected = -RATE * (step / max(1.0, rms(step)) * rms(p) + DECAY * p)
    np.testing.assert_allclose(update["kernel"], expected, rtol=1e-4, atol=1e-6)


def test_the_clip_is_of_the_global_norm_and_comes_before_the_decay():
    g, p = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}, {"a": jnp.array([1.0]), "b": jnp.array([0.0])}
    tx = optimizer("sgd", 1.0, weight_decay=10.0, clip=1.0)
    update, _ = tx.update(g, tx.init(p), p)
    np.testing.assert_allclose((update["a"], update["b"]), ([-10.6], [-0.8]), rtol=1e-6)
    small = {"a": jnp.array([0.3]), "b": jnp.array([0.4])}
    tx = optimizer("sgd", 1.0, clip=1.0)
    update, _ = tx.update(small, tx.init(p), p)
    np.testing.assert_allclose((update["a"], update["b"]), ([-0.3], [-0.4]), rtol=1e-6)


@pytest.mark.parametrize(
    "schedule, at",
    [
        ("constant", {0: 0.0, 5: 1.0, 10: 2.0, 60: 2.0, 110: 2.0}),
        ("linear", {0: 0.0, 5: 1.0, 10: 2.0, 60: 1.1, 110: 0.2}),
        ("cosine", {0: 0.0, 5: 1.0, 10: 2.0, 60: 1.1, 110: 0.2, 500: 0.2}),
    ],
)
def test_rates_warm_up_and_come_down(schedule, at):
    rate = learning_rate(2.0, 110, schedule, warmup=10, final=0.1)
    assert {n: pytest.approx(float(rate(n)), abs=1e-6) for n in at} == at
    assert float(learning_rate(2.0, 100, schedule)(0)) == 2.0


def test_unknown_names_are_met_with_the_choice():
    with pytest.raises(ValueError, match="unknown optimizer 'adam'; choose one of adamw, radam, sgd"):
        optimizer("adam", 0.1)
    with pytest.raises(ValueError, match="unknown learning-rate schedule 'step'; choose one of constant"):
        learning_rate(1.0, 10, "step")


@pytest.mark.parametrize("shape", [(24, 16), (3, 3, 8, 16)])
def test_muon_orthogonalises_kernels_and_leaves_the_rest_to_adamw(shape):
    kernel, bias = jax.random.normal(jax.random.key(0), shape), jnp.arange(1.0, 7.0).reshape(3, 2)
    params = {"kernel": kernel, "bias": bias}  # of a map, as non-scaling LayerNorm's
    grads = {"kernel": jax.random.normal(jax.random.key(1), shape), "bias": bias - 3.0}
    tx = optimizer("muon", RATE, weight_decay=DECAY)
    updates, _ = tx.update(grads, tx.init(params), params)
    rest = optax.adamw(RATE, weight_decay=DECAY, nesterov=True)
    expected, _ = rest.update(grads["bias"], rest.init(bias), bias)
    np.testing.assert_allclose(updates["bias"], expected, rtol=1e-5)
    moved = np.asarray(updates["kernel"] + RATE * DECAY * kernel).reshape(-1, 16)
    gradient = np.asarray(grads["kernel"]).reshape(-1, 16)
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    nearest = left @ right  # the orthogonal matrix that the update stands for
    values = np.linalg.svd(moved, compute_uv=False) / (RATE * 0.2 * np.sqrt(len(gradient)))  # arXiv 2502.16982, eq. 4
    assert values.min() > 0.6 and values.max() < 1.3  # Newton-Schulz ends near 1, not at it
    assert -(moved * nearest).sum() > 0.95 * np.linalg.norm(moved) * np.linalg.norm(nearest)


def test_the_clip_is_optax_own_but_for_how_the_norm_is_summed():
    rng = np.random.default_rng(0)
    grads = {"a": jnp.asarray(rng.standard_normal((3, 5)), jnp.float32), "b": {"c": jnp.asarray([30.0, -4.0])}}
    for limit in (1.0, 1e3):
        ours, theirs = clipped(limit), optax.clip_by_global_norm(limit)
        assert jax.tree.structure(ours.init(grads)) == jax.tree.structure(theirs.init(grads))  # of checkpoints
        found, wanted = (tx.update(grads, tx.init(grads))[0] for tx in (ours, theirs))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), found, wanted)
