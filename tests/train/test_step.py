"""The jitted step: what it computes, what it keeps, and that devices do not matter."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.diffusion.path import vp_path
from lcm_jax.models.presets import UNETS
from lcm_jax.models.unet import unet
from lcm_jax.objectives import lcd
from lcm_jax.parallel import rules
from lcm_jax.parallel.mesh import make_mesh
from lcm_jax.parallel.reading import readings
from lcm_jax.parallel.transfer import place_batch, replicate
from lcm_jax.train.norm import norm
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.step import average, init_state, train_step

KEY = jax.random.key(3)
SGD = optimizer("sgd", 0.1)


@dataclass(frozen=True)
class Regression:
    """Least squares of a line; the key plays no part unless `noise` asks for it."""

    mu: float | None = 0.9
    noise: float = 0.0
    needs_teacher: bool = False

    def loss(self, nets, batch, key, step):
        error = nets.student(batch["x"]) - batch["y"] * batch["scale"]
        draw = jax.random.normal(key)
        losses = jnp.square(error) + self.noise * draw * nets.student(batch["x"])
        loss = losses.mean()
        return loss, {"loss/mean": loss, "sample/x": batch["x"], "draw/mean": draw}


def line(params, x):
    return params["a"] * x + params["b"]


def start():
    return {"a": jnp.float32(2.0), "b": jnp.float32(-1.0)}


def data(b=12):
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal(b).astype(np.float32), "y": rng.standard_normal(b).astype(np.float32)}


FROZEN = {"batch": {"scale": jnp.array(0.5)}}


def run(steps=1, objective=Regression(), tx=SGD, batch=None, **settings):
    state, history = init_state(start(), tx, objective), []
    step = jax.jit(train_step(objective, line, None, tx, **settings))
    for _ in range(steps):
        state, metrics = step(state, FROZEN, data() if batch is None else batch, KEY)
        history.append((state, metrics))
    return history


def gradient(p, batch):
    residual = p["a"] * batch["x"] + p["b"] - 0.5 * batch["y"]
    return {"a": 2 * (residual * batch["x"]).mean(), "b": 2 * residual.mean()}


def test_one_step_of_gradient_descent():
    ((state, metrics),) = run()
    grad = gradient(start(), data())
    for name in ("a", "b"):
        assert state.params[name] == pytest.approx(float(start()[name] - 0.1 * grad[name]), rel=1e-5)
    assert metrics["grad_norm"] == pytest.approx(float(np.hypot(grad["a"], grad["b"])), rel=1e-5)
    assert state.step == 1 and state.step.dtype == jnp.int32


def test_the_target_follows_at_mu_and_the_sampling_average_warms_up():
    states = [state for state, _ in run(30, ema_decay=0.7)]
    target = ema = start()["a"]
    for count, state in enumerate(states):
        target = 0.9 * target + 0.1 * state.params["a"]
        decay = min(0.7, (1 + count) / (10 + count))
        ema = decay * ema + (1 - decay) * state.params["a"]
        assert state.target["a"] == pytest.approx(float(target), rel=1e-5)
        assert state.ema["a"] == pytest.approx(float(ema), rel=1e-5)
    assert states[-1].target["a"] != pytest.approx(float(states[-1].ema["a"]), rel=1e-4)


def test_without_mu_the_online_weights_are_the_target():
    seen = []

    @dataclass(frozen=True)
    class Both(Regression):
        def loss(self, nets, batch, key, step):
            gap = jnp.square(nets.student(batch["x"]) - nets.target(batch["x"]) - 1.0).mean()
            return gap, {"loss/mean": gap}

    for mu in (None, 0.9):
        state, metrics = run(2, Both(mu=mu))[-1]
        seen.append((state.target is None, float(metrics["loss/mean"])))
    (without, zero_gap), (with_average, gap) = seen
    assert without and zero_gap == 1.0  # student and target stay one, the step moves both
    assert not with_average and gap != 1.0
    assert run(1, Both(mu=None))[0][0].params["a"] != start()["a"]  # and no gradient flows into the target


@pytest.mark.parametrize("passes", [2, 3, 12])
def test_accumulated_passes_equal_one(passes):
    (state, metrics), (again, gathered) = run(5)[-1], run(5, accumulate=passes)[-1]
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    assert gathered["loss/mean"] == pytest.approx(float(metrics["loss/mean"]), rel=1e-5)
    assert gathered["grad_norm"] == pytest.approx(float(metrics["grad_norm"]), rel=1e-5)
    np.testing.assert_array_equal(gathered["sample/x"], data()["x"])  # in the order of the batch


def test_every_pass_and_every_step_draws_anew_and_a_resumed_run_draws_the_same():
    draws = [float(m["draw/mean"]) for _, m in run(3, Regression(noise=1.0))]
    assert len(set(draws)) == 3
    objective, state = Regression(noise=1.0), run(2, Regression(noise=1.0))[-1][0]
    resumed = jax.jit(train_step(objective, line, None, SGD))(state, FROZEN, data(), KEY)
    assert float(resumed[1]["draw/mean"]) == draws[2]

    @dataclass(frozen=True)
    class Draws(Regression):
        def loss(self, nets, batch, key, step):
            draw = jax.random.normal(key, batch["x"].shape)
            return nets.student(draw).mean(), {"sample/draw": draw}

    ((_, metrics),) = run(1, Draws(), accumulate=3)
    assert len(np.unique(metrics["sample/draw"])) == 12


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="a batch of 12 does not split into accumulate = 5"):
        run(1, accumulate=5)


def test_five_steps_are_traced_once_and_the_state_is_donated():
    traces = []
    objective, tx = Regression(), optimizer("adamw", 1e-2)
    plain = train_step(objective, line, None, tx, accumulate=2)

    def counted(*args):
        traces.append(1)
        return plain(*args)

    step = jax.jit(counted, donate_argnums=0)
    params = start()
    state = init_state(params, tx, objective)
    for _ in range(5):
        old = jax.tree.leaves(state)
        state, _ = step(state, FROZEN, data(), KEY)
        assert all(leaf.is_deleted() for leaf in old)
    assert len(traces) == 1 and state.step == 5
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, FROZEN)))


def test_averages_keep_the_precision_of_their_leaves():
    old, new = {"w": jnp.zeros(3, jnp.bfloat16)}, {"w": jnp.ones(3, jnp.bfloat16)}
    out = average(old, new, jnp.float32(0.75))
    assert out["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(out["w"], 0.25)


def test_the_norm_is_over_all_leaves_together():
    assert norm({"a": jnp.full((2, 2), 2.0), "b": jnp.array([3.0])}) == pytest.approx(5.0)


# Devices. Four steps of latent consistency distillation of the tiny U-Net.

SIZES = replace(UNETS["tiny"], channels=(32,), attention=(True,), depth=(1,), heads=(2,), norm_groups=8)
STUDENT, TEACHER = unet(replace(SIZES, w_width=8)), unet(SIZES)
LCD = lcd.build(vp_path(), "v", w_width=8)
SLOW = optimizer("sgd", 0.01)  # a large step would amplify rounding with every step


def latents(b=8):
    rng = np.random.default_rng(1)
    draw = lambda *s: rng.standard_normal(s).astype(np.float32)
    return {"mean": draw(b, 4, 4, 4), "std": np.full((b, 4, 4, 4), 0.1, np.float32), "context": draw(b, 3, 16)}


def distil(mesh, name, steps=4):
    """Losses and final parameters on a mesh, every tree sharded by the rule set of that name."""
    chosen = rules.by_tree(name, {})
    params = jax.jit(STUDENT.init)(jax.random.key(0))
    init = lambda p: init_state(p, SLOW, LCD)
    shardings = rules.infer(jax.eval_shape(init, params), chosen, mesh)
    state = jax.jit(init, out_shardings=shardings)(params)
    constants = {"scale": jnp.ones(()), "uncond": {"context": jnp.zeros((3, 16))}}
    teacher = jax.jit(TEACHER.init)(jax.random.key(1))
    teacher = jax.device_put(teacher, rules.infer(teacher, chosen["teacher"], mesh))
    frozen = {"teacher": teacher, "batch": replicate(constants, mesh)}
    step = train_step(LCD, STUDENT.apply, TEACHER.apply, SLOW, readings=readings(chosen, mesh))
    step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
    losses = []
    for _ in range(steps):
        before = jax.tree.leaves(state)
        state, metrics = step(state, frozen, place_batch(latents(), mesh), replicate(KEY, mesh))
        assert all(leaf.is_deleted() for leaf in before)
        losses.append(float(metrics["loss/mean"]))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, shardings))
    split = lambda tree: sum(not s.is_fully_replicated for s in jax.tree.leaves(tree))
    return np.array(losses), jax.device_get(state.params), (split(shardings.params), split(shardings.ema))


@pytest.fixture(scope="module")
def alone():
    return distil(make_mesh(devices=jax.devices()[:1]), "replicate")


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("replicate", {"data": 8}),
        ("fsdp", {"data": 1, "fsdp": 8}),
        ("zero", {"data": 4, "fsdp": 2}),
        ("tensor", {"data": 4, "tensor": 2}),
        ("fsdp_tensor", {"data": 2, "fsdp": 2, "tensor": 2}),
    ],
)
def test_eight_devices_do_what_one_does(alone, name, sizes, monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 2**9)  # so that attention of this size is split, too
    losses, params, split = distil(make_mesh(**sizes), name)
    assert [many > 20 for many in split] == [name not in ("replicate", "zero"), name != "replicate"]
    assert np.linalg.norm(losses - alone[0]) < 1e-5 * np.linalg.norm(alone[0])
    a, b = (np.concatenate([x.ravel() for x in jax.tree.leaves(tree)]) for tree in (params, alone[1]))
    start = jax.jit(STUDENT.init)(jax.random.key(0))
    first = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(start)])
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
    assert np.linalg.norm(b - first) > 1e-4 * np.linalg.norm(b)  # there was something to agree on


@pytest.mark.parametrize("name, sizes", [("fsdp", {"data": 1, "fsdp": 8}), ("fsdp_tensor", {"fsdp": 2, "tensor": 2})])
def test_adapters_that_lie_in_parts_train_as_whole_ones(name, sizes, monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 1)
    rng = np.random.default_rng(0)
    draw = lambda *s: rng.standard_normal(s).astype(np.float32)
    base, adapters = {"w": draw(16, 8)}, {"a": draw(16, 8), "b": 0.1 * draw(8, 8)}
    batch = {"x": draw(8, 16), "y": draw(8)}

    def narrow(params, x, read=lambda path, weight: weight):
        return jnp.tanh(x @ read("w", params["w"])).sum(-1)

    def after(mesh, chosen, steps=2):
        lies = lambda tree, of: jax.device_put(tree, rules.infer(tree, chosen[of], mesh))
        frozen = {"base": lies(base, "teacher"), "batch": replicate(FROZEN["batch"], mesh)}
        merge = lambda trained, frozen: {"w": frozen["base"]["w"] + trained["a"] @ trained["b"]}
        state = init_state(lies(adapters, "params"), SGD, Regression())
        step = jax.jit(train_step(Regression(), narrow, None, SGD, weights=merge, readings=readings(chosen, mesh)))
        for _ in range(steps):
            state, _ = step(state, frozen, place_batch(batch, mesh), replicate(KEY, mesh))
        return state.params

    one = jax.device_get(after(make_mesh(devices=jax.devices()[:1]), rules.by_tree("replicate", {})))
    in_parts = after(make_mesh(**sizes), rules.by_tree(name, {}))
    assert not in_parts["a"].is_fully_replicated
    split = jax.device_get(in_parts)
    for leaf in adapters:
        assert np.linalg.norm(split[leaf] - one[leaf]) < 1e-5 * np.linalg.norm(one[leaf])
        assert np.linalg.norm(one[leaf] - adapters[leaf]) > 1e-2 * np.linalg.norm(one[leaf])


@pytest.mark.parametrize("sizes", [{"data": 1, "fsdp": 8}, {"data": 4, "fsdp": 2}])
def test_factored_moments_in_parts_do_what_whole_ones_do(sizes, monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 2**6)  # so that the vectors are split, too
    rng = np.random.default_rng(0)
    draw = lambda *s: rng.standard_normal(s).astype(np.float32)
    params = {"w": draw(128, 256) / 16, "b": draw(256)}
    batch, tx = {"x": draw(8, 128), "y": draw(8)}, optimizer("adafactor", 0.05, weight_decay=0.1, clip=1.0)

    def wide(params, x, read=lambda path, weight: weight):
        return jnp.tanh(x @ read("w", params["w"]) + read("b", params["b"])[None]).mean(-1)

    def after(mesh, chosen, steps=4):
        init = lambda p: init_state(p, tx, Regression())
        shardings = rules.infer(jax.eval_shape(init, params), chosen, mesh)
        state, losses = jax.jit(init, out_shardings=shardings)(params), []
        step = train_step(Regression(), wide, None, tx, accumulate=2, readings=readings(chosen, mesh))
        step = jax.jit(step, out_shardings=(shardings, None))
        for _ in range(steps):
            frozen = {"batch": replicate(FROZEN["batch"], mesh)}
            state, metrics = step(state, frozen, place_batch(batch, mesh), replicate(KEY, mesh))
            losses.append(float(metrics["loss/mean"]))
        return state, np.array(losses)

    one, alone = after(make_mesh(devices=jax.devices()[:1]), rules.by_tree("replicate", {}))
    parts, losses = after(make_mesh(**sizes), rules.by_tree("fsdp", {}))
    moments = [leaf for leaf in jax.tree.leaves(parts.opt_state) if leaf.shape in ((128,), (256,))]
    assert len(moments) == 3 and not any(leaf.is_fully_replicated for leaf in moments)
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    for a, b in zip(jax.tree.leaves(parts), jax.tree.leaves(one), strict=True):
        assert np.linalg.norm(np.asarray(a) - np.asarray(b)) <= 1e-5 * np.linalg.norm(b)
