"""The parts of consistency training on noise levels: scales that follow the step, the denoising term, pairs."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import KEY, At, Recorder, batch, nets, weights

from lcm_jax.diffusion.coupling import independent
from lcm_jax.diffusion.curriculum import Constant, Doubling
from lcm_jax.diffusion.grid import Karras
from lcm_jax.objectives import cd, ct, ect, edm, ict, slct
from lcm_jax.objectives.base import Nets
from lcm_jax.objectives.extra import LowNoise
from lcm_jax.objectives.robust import by_dimension, robust, scheduled

STEPS = 700
STAGES = Doubling(10, 640, STEPS)
BUILDS = (cd.build, lambda: ict.build(STEPS), lambda: slct.build(STEPS), lambda: ect.build(10))


class Told:
    """A network of nothing that remembers what it was asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, noise, **told):
        self.seen.append((x, told))
        return jnp.zeros_like(x)


def recorded(objective, data, step=0):
    """What student and target were asked, and the metrics."""
    student, target = Recorder(), Recorder()
    metrics = objective.loss(Nets(student, target, Recorder()), data, KEY, jnp.asarray(step))[1]
    return student.calls[0], target.calls[0], metrics


def test_scale_never_rises_over_the_stages():
    law = scheduled(STAGES, 0.03456, 10)
    deltas = np.array([float(law(jnp.asarray(step), 16)) for step in range(0, STEPS, 20)])
    assert (np.diff(deltas) <= 0).all() and deltas[0] == pytest.approx(0.03456)
    assert deltas[-1] == pytest.approx(0.00025336, rel=1e-4)
    with pytest.raises(ValueError, match=r"delta is 0.02 up to 10 intervals and 0.0271 above: give at least that"):
        scheduled(STAGES, 0.02, 10)


def test_first_scale_by_dimension():
    law, step = scheduled(STAGES, None, 10), jnp.asarray(0)
    assert float(law(step, 4096)) == float(jax.jit(lambda step: law(step, 4096))(step)) == pytest.approx(0.03456)
    assert float(law(step, 4 * 4096)) == pytest.approx(2 * 0.03456)
    with pytest.raises(ValueError, match=r"delta is 0.015 up to 10 intervals and 0.0271 above: give at least that"):
        law(step, 8 * 8 * 12)


def test_distances_follow_step_and_size():
    a, b = jnp.zeros((2, 4)), jnp.ones((2, 4))
    np.testing.assert_allclose(robust("l2", 3.0)(a, b, jnp.asarray(0)), 1)
    np.testing.assert_allclose(robust("l2", 3.0, "sum")(a, b, jnp.asarray(0)), 4)
    delta = 0.00054 * 2
    expected = np.sqrt(4 + delta**2) - delta
    np.testing.assert_allclose(robust("pseudo_huber", by_dimension, "sum")(a, b, jnp.asarray(0)), expected, rtol=1e-6)
    cauchy = robust("cauchy", scheduled(STAGES, 0.03456, 10))
    for step, delta in [(0, 0.03456), (100, 0.013635), (699, 0.00025336)]:
        got = cauchy(a, b, jnp.asarray(step))
        np.testing.assert_allclose(got, np.log1p(1 / (2 * delta**2)), rtol=1e-4)


def test_denoising_runs_over_the_published_part_of_the_grid():
    """Index floor(.75 (N + 1)) of N + 1 points: .085 of 11, .16975 of 21 points and more."""
    grid = Karras()
    for N, edge in [(10, 0.0850872), (20, 0.16975), (40, 0.16975), (640, 0.16975)]:
        term = LowNoise(Constant(N), grid)
        assert float(term.highest(jnp.asarray(0))) == pytest.approx(edge, rel=1e-4)
        sigmas = grid.grid(N)
        b = len(sigmas)
        _, metrics = term(jnp.zeros((b, 2)), jnp.ones((b, 2)), sigmas, jnp.asarray(0))
        kept = np.arange(b) >= np.floor(0.75 * b)
        assert float(metrics["low_noise_share/mean"]) == pytest.approx(kept.mean())
        expected = (1 / np.asarray(sigmas)[kept] ** 2 + 4).mean()
        assert float(metrics["low_noise/mean"]) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(ValueError, match="share is 2.0: give the part"):
        LowNoise(Constant(10), grid, share=2.0)


def test_denoising_of_no_sample_is_nothing():
    term = LowNoise(Constant(10), Karras())
    value = lambda x: term(jnp.zeros((3, 2)), x, jnp.full(3, 80.0), jnp.asarray(0))[0]
    loss, grad = jax.value_and_grad(value)(jnp.ones((3, 2)))
    assert loss == 0 and not grad.any()


def test_denoising_adds_to_the_loss_five_times_itself():
    objective, data = slct.build(STEPS), batch()
    objective = replace(objective, pair=At(0.1, 0.05))
    plain = replace(objective, extra=ict.build(STEPS).extra)
    p = weights()
    step = jnp.asarray(300)
    with_term, metrics = objective.loss(nets(p), data, KEY, step)
    without = plain.loss(nets(p), data, KEY, step)[0]
    assert metrics["low_noise_share/mean"] == 1
    assert float(with_term - without) == pytest.approx(5 * float(metrics["low_noise/mean"]), rel=1e-5)


@pytest.mark.parametrize("build", [lambda: ict.build(STEPS), lambda: slct.build(STEPS), lambda: ct.build(STEPS)])
def test_training_pairs_share_noise_dropout_and_label(build):
    data = {**batch(std=0.0), "label": jnp.arange(6)}
    data["scale"] = jnp.ones(())
    objective = build()
    seen = []

    def net(x, noise, **told):
        seen.append((x, noise, told))
        return jnp.zeros_like(x)

    metrics = objective.loss(Nets(net, net), data, KEY, jnp.asarray(500))[1]
    (x, c_noise, told), (y, d_noise, also) = seen
    np.testing.assert_array_equal(told["labels"], jnp.arange(6))
    np.testing.assert_array_equal(told["labels"], also["labels"])
    assert (jax.random.key_data(told["dropout_key"]) == jax.random.key_data(also["dropout_key"])).all()
    t, s = jnp.exp(c_noise / 250), jnp.exp(d_noise / 250)
    np.testing.assert_allclose(t, metrics["sample/t"], rtol=1e-4)
    wide = lambda v: v[:, None, None, None]
    noise_of = lambda x, t: (x * wide(jnp.sqrt(t**2 + 0.25)) - data["mean"]) / wide(t)
    assert (s < t).all()
    high = t > 0.1  # below, the noise is too small a part of x to be read off exactly
    np.testing.assert_allclose(noise_of(x, t)[high], noise_of(y, s)[high], atol=2e-2)


def test_labels_stay_with_their_data_where_noise_is_coupled():
    """At a noise level that shows both: x is that of its row's label, and its noise another row's."""
    data = {**batch(b=16, std=0.0), "label": jnp.arange(16)}
    t = 1.0
    objective = replace(slct.build(STEPS), pair=At(t, 0.5))
    rows = {}
    for name, couple in (("coupled", objective.couple), ("drawn", independent)):
        net = Told()
        replace(objective, couple=couple).loss(Nets(net, net), data, KEY, jnp.asarray(0))
        x, told = net.seen[0]
        np.testing.assert_array_equal(told["labels"], jnp.arange(16))
        z0 = data["mean"] * data["scale"]
        rows[name] = (np.asarray(x) * np.sqrt(t**2 + 0.25) - z0).reshape(16, -1)  # the noise of each label's datum
    away = np.linalg.norm(rows["coupled"][:, None] - rows["drawn"][None], axis=-1)
    order = away.argmin(1)
    assert away.min(1).max() < 1e-4 and sorted(order) == list(range(16)) and (order != np.arange(16)).any()


def test_labels_are_dropped_at_the_share_asked_for_for_every_network_alike():
    data = {**batch(b=400), "label": jnp.arange(400) % 3, "no_label": jnp.int32(3)}
    told = {}
    for share in (0.0, 0.3):
        nets = Told(), Told(), Told()
        cd.build(label_drop=share).loss(Nets(*nets), data, KEY, jnp.asarray(0))
        labels = [np.asarray(told["labels"]) for net in nets for _, told in net.seen]
        assert len(labels) == 4 and all((one == labels[0]).all() for one in labels)
        told[share] = labels[0]
    np.testing.assert_array_equal(told[0.0], data["label"])
    dropped = told[0.3] == 3
    assert dropped.mean() == pytest.approx(0.3, abs=0.07) and (told[0.3] == data["label"])[~dropped].all()
    with pytest.raises(ValueError, match="label_drop is 1.0: give a share"):
        edm.build(label_drop=1.0)


def test_distillation_asks_the_teacher_twice_an_interval_and_nobody_else():
    teacher, student = Recorder(), Recorder()
    cd.build().loss(Nets(student, student, teacher), batch(), KEY, jnp.asarray(0))
    assert len(teacher.calls) == 2 and len(student.calls) == 2  # Heun


def test_curriculum_and_decay_change_without_another_trace():
    objective, traces = ct.build(STEPS), []

    @jax.jit
    def intervals(step):
        traces.append(1)
        return objective.pair(KEY, 6, step)[0], objective.mu(step)

    low, high = intervals(jnp.asarray(0)), intervals(jnp.asarray(STEPS))
    assert len(traces) == 1
    assert float(low[1]) == pytest.approx(0.9**2) and float(high[1]) == pytest.approx(0.9 ** (2 / 150), rel=1e-5)
    assert set(np.unique(low[0]).round(3)) <= {80.0}


def test_a_gap_that_reaches_the_data_is_denoising():
    """ECT's first stage: s = 0 for small t, where the target is z0 itself, whatever the network says."""
    objective = replace(ect.build(10), pair=At(0.3, 0.0))
    data = batch(std=0.0)
    a, b = (objective.loss(nets(weights(), weights(seed)), data, KEY, jnp.asarray(0))[0] for seed in (1, 2))
    assert a == b


def test_at_sigma_min_the_target_is_the_sample_itself():
    objective = replace(ict.build(STEPS), pair=At(0.0025, 0.002))
    data, p = batch(), weights()
    a, b = (objective.loss(nets(p, weights(seed)), data, KEY, jnp.asarray(0))[0] for seed in (1, 2))
    assert float(a) == pytest.approx(float(b), rel=1e-5)


@pytest.mark.parametrize("t, s", [(80.0, 45.3), (0.0167, 0.002)])
@pytest.mark.parametrize("build", BUILDS)
def test_gradients_are_finite_at_both_ends_of_noise(build, t, s):
    objective = replace(build(), pair=At(t, s))
    loss = lambda p: objective.loss(nets(p, p, p), batch(), KEY, jnp.asarray(650))[0]
    value, grad = jax.value_and_grad(loss)(weights())
    assert jnp.isfinite(value) and jnp.isfinite(grad).all()
