"""Statistics taken in parts are those of the whole, on one host and on two."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lcm_jax.evaluate.feature_statistics import (
    FeatureStatistics,
    joined_over_hosts,
    merged_over_hosts,
    statistics,
)
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.evaluate.frechet import frechet_distance, moments

ROOT = Path(__file__).parents[2]
# Means far above the spread, as the worst case of sums of squares: (1000 / 0.1)^2 = 1e8.
X = (1000 + 0.1 * np.random.default_rng(0).standard_normal((90, 12))).astype(np.float32)


def taken(parts):
    found = FeatureStatistics.none(X.shape[1])
    for part in parts:
        found.add(part)
    return found


def check(found, bound=1e-12):
    whole = X.astype(np.float64)
    assert found.count == len(X)
    np.testing.assert_allclose(found.mean, whole.mean(0), rtol=1e-14)
    covariance = np.cov(whole.T)
    assert np.abs(found.covariance - covariance).max() < bound * covariance.max()


@pytest.mark.parametrize("cuts", [[], [1], [45], [7, 8, 8, 60], list(range(1, 90))])
def test_any_batches_give_the_statistics_of_the_whole(cuts):
    check(taken(np.split(X, cuts)))


def test_alone_there_is_nothing_to_merge():
    part = taken([X])
    assert merged_over_hosts(part) is part


def test_plain_sums_of_squares_would_have_failed():
    """The check has teeth: in float32 with raw sums the same numbers lose the covariance altogether."""
    square = X.T @ X / len(X) - np.outer(X.mean(0), X.mean(0))
    assert np.abs(square - np.cov(X.T.astype(np.float64))).max() > 0.1 * np.cov(X.T.astype(np.float64)).max()


def test_the_distance_is_that_of_features_held_together():
    other = X[::2] + np.random.default_rng(1).standard_normal((45, 12)).astype(np.float32)
    want = frechet_distance(moments(X), moments(other))
    got = frechet_distance(taken(np.split(X, 3)).moments, taken(np.split(other, 3)).moments)
    assert got == pytest.approx(want, rel=1e-9)


def test_images_stream_through_a_network():
    images = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), dtype=np.uint8)
    heard, alive = [], []

    def apply(pixels):
        alive.append(len(pixels))
        return pixels.mean((1, 2))

    net = FeatureNet("means", "hash", apply)
    found = statistics(net, iter([images[:6], images[6:]]), 4, heard.append)
    assert alive == [4] * 4 and heard == [4, 2, 4, 1]
    np.testing.assert_allclose(found.covariance, np.cov(images.mean((1, 2)).astype(np.float32).T), rtol=1e-6)


def test_what_has_no_statistics_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        statistics(FeatureNet("means", "hash", lambda x: x.mean((1, 2))), [])
    with pytest.raises(ValueError, match="width 3 among some of 12"):
        taken([X, X[:, :3]])
    with pytest.raises(ValueError, match="nan or inf"):
        taken([np.full((2, 12), np.nan, np.float32)])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        _ = taken([X[:1]]).covariance
    with pytest.raises(ValueError, match="6 features came, which is not this process's turn of 7"):
        joined_over_hosts(X[:6], 7)


TWO = """
import sys
import jax
process = int(sys.argv[1])
jax.distributed.initialize("localhost:" + sys.argv[2], 2, process)
import numpy as np
from lcm_jax.evaluate.feature_statistics import FeatureStatistics, joined_over_hosts, merged_over_hosts
x, found = np.load(sys.argv[3]), {}
for name, cut in (("whole", 25), ("one", 0)):  # of "one" all lies in the second process
    own = FeatureStatistics.none(12)
    own.add(x[:cut] if process == 0 else x[cut:])
    whole = merged_over_hosts(own)
    found |= {f"{name}_count": whole.count, f"{name}_mean": whole.mean, f"{name}_scatter": whole.scatter}
assert merged_over_hosts(FeatureStatistics.none(3)).count == 0
np.savez(f"{sys.argv[3]}.{process}.npz", joined=joined_over_hosts(x[:7][process::2], 7), **found)
"""


def test_two_processes_agree_bit_for_bit(tmp_path, free_port):
    np.save(tmp_path / "x.npy", X)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    start = lambda i: subprocess.Popen(
        [sys.executable, "-c", TWO, str(i), str(free_port), str(tmp_path / "x.npy")],
        env=env, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    running = [start(0), start(1)]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-2000:]
    a, b = (np.load(tmp_path / f"x.npy.{i}.npz") for i in (0, 1))
    for name in a.files:
        np.testing.assert_array_equal(a[name], b[name])
    for name in ("whole", "one"):
        check(FeatureStatistics(int(a[f"{name}_count"]), a[f"{name}_mean"], a[f"{name}_scatter"]))
    for found in (a, b):
        np.testing.assert_array_equal(found["joined"], X[:7])


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
