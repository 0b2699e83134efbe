"""Group intervals: whole groups come and go, and the intervals have the width theory says."""

import numpy as np
import pytest

from lcm_jax.evaluate.bootstrap import group_weights, interval, resampled_mean


def test_groups_move_together_within_and_across_sets():
    a, b = ["x", "x", "y", "z"], ["z", "x"]
    u, v = group_weights(200, 0, a, b)
    assert u.shape == (200, 4) and v.shape == (200, 2)
    np.testing.assert_array_equal(u[:, 0], u[:, 1])
    np.testing.assert_array_equal(u[:, [3, 0]], v)
    np.testing.assert_array_equal(u[:, 1:].sum(1), 3)  # three groups are drawn each time


def test_the_seed_decides():
    first, again, other = (group_weights(5, seed, list("abcdef"))[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_width_for_single_members_and_for_copies():
    values = np.random.default_rng(0).normal(size=100)
    standard_error = values.std() / 10

    def width(values, groups):
        low, high = interval(resampled_mean(values, group_weights(4000, 0, groups)[0]))
        assert low < values.mean() < high
        return high - low

    groups = [str(i) for i in range(100)]
    alone = width(values, groups)
    assert alone == pytest.approx(2 * 1.96 * standard_error, rel=0.08)
    # Four copies of each value are no new information: the interval keeps its width.
    assert width(np.repeat(values, 4), list(np.repeat(groups, 4))) == pytest.approx(alone, rel=1e-6)


def test_interval_levels():
    low, high = interval(np.arange(1001) / 1000, level=0.9)
    assert (low, high) == pytest.approx((0.05, 0.95))


def test_empty_resamples_are_nan_and_refused():
    mean = resampled_mean(np.array([1.0, 3.0]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert np.isnan(mean[0]) and mean[1] == 2
    with pytest.raises(ValueError, match="too few groups"):
        interval(mean)


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match="needs at least 2"):
        group_weights(3, 0, ["a", "a"])
    with pytest.raises(ValueError, match="level 95.0 lies outside"):
        interval(np.ones(3), level=95.0)
