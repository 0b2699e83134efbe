"""The sampling averages: their names, decays and profiles, and several of them in one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lcm_jax.train import averages
from lcm_jax.train.averages import exponent, part
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.step import init_state, train_step

KEY = jax.random.key(0)


class Slope:
    """The weight falls by the batch's slope."""

    mu, needs_teacher = None, False

    def loss(self, nets, batch, key, step):
        return nets.student() * batch["slope"].mean(), {}


def history(steps, **settings):
    """The weight after each step, and the last averages."""
    tx, objective = optimizer("sgd", 1.0), Slope()
    names = list(averages.averages(**settings))
    state = init_state({"w": jnp.float32(3.0)}, tx, objective, names)
    step = jax.jit(train_step(objective, lambda params: params["w"], None, tx, **settings))
    seen = []
    for i in range(steps):
        slope = jnp.full(2, np.sin(i), jnp.float32)
        state, _ = step(state, {"batch": {}}, {"slope": slope}, KEY)
        seen.append(float(state.params["w"]))
    return np.array(seen), state.ema, step


def test_each_of_several_is_what_it_would_be_alone():
    seen, several, step = history(30, ema_decay=(0.9, 0.5), ema_power=0.1)
    assert set(several) == {"0.9", "0.5", "power0.1"} and step._cache_size() == 1
    for name, alone in (("0.9", {"ema_decay": 0.9}), ("0.5", {"ema_decay": (0.5,)})):
        one = history(30, **alone)[1]
        assert set(one) == {"w"}  # a single one is no dict of averages
        np.testing.assert_array_equal(one["w"], several[name]["w"])
    power = history(30, ema_decay=None, ema_power=0.1)[1]
    np.testing.assert_array_equal(power["w"], several["power0.1"]["w"])
    assert len({float(tree["w"]) for tree in several.values()}) == 3


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_a_power_average_weighs_steps_by_a_power_of_their_number(width):
    """Against the product of the decays, and the profile of which the width is the standard deviation."""
    gamma, steps = exponent(width), 400
    assert (gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3)) == pytest.approx(width**2, rel=1e-6)
    seen, ema, _ = history(steps, ema_decay=None, ema_power=width)
    t = np.arange(1, steps + 1)
    beta = (1 - 1 / t) ** (gamma + 1)
    weights = (1 - beta) * np.append(np.cumprod(beta[::-1])[::-1][1:], 1)
    assert weights.sum() == pytest.approx(1) and float(ema["w"]) == pytest.approx((weights * seen).sum(), abs=1e-4)
    np.testing.assert_allclose(weights[50:], (t**gamma / (t**gamma).sum())[50:], rtol=0.15, atol=1e-5)
    spread = np.sqrt((weights * t**2).sum() - (weights * t).sum() ** 2) / steps
    assert spread == pytest.approx(width, rel=0.02)


def test_published_widths_have_the_published_exponents():
    assert [round(exponent(width), 2) for width in (0.05, 0.1)] == [16.97, 6.94]


def test_an_average_is_found_by_its_number():
    names = list(averages.averages((0.9999, 0.999), (0.05,)))
    assert names == ["0.9999", "0.999", "power0.05"]
    assert [part(names), part(names, "0.9990"), part(names, "power.05")] == ["ema/0.9999", "ema/0.999", "ema/power0.05"]
    assert part(["0.999"]) == part(["0.999"], 0.999) == "ema"
    for number in ("0.99", "first", "power0.5"):
        with pytest.raises(ValueError, match=f"keeps no average '{number}'; choose one of 0.9999, 0.999, power0.05"):
            part(names, number)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"ema_decay": 1.0}, "config.average.ema_decay is 1.0: give at least 0 and below 1"),
        ({"ema_decay": (0.9, -1)}, "config.average.ema_decay is -1"),
        ({"ema_decay": (0.9, 0.90)}, "config.average.ema_decay has 0.9 twice"),
        ({"ema_power": 0.3}, "config.average.ema_power is 0.3: give a width above 0, up to 0.2887"),
        ({"ema_power": 0}, "config.average.ema_power is 0"),
        ({"ema_decay": ()}, "names no average"),
        ({"ema_decay": None}, "names no average"),
    ],
)
def test_settings_that_are_no_averages_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        averages.averages(**settings)
