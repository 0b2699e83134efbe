"""Scores of planted image sets: perfect, shuffled, copied and of another law."""

import numpy as np
import pytest

from lcm_jax.evaluate import scores
from lcm_jax.evaluate.scores import Labelled, Reference

N, D = 40, 6


def drawn(seed, n=N, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(n, D)) + shift).astype(np.float32)


def labels(prefix, n=N):
    return [f"{prefix}{i}" for i in range(n)], [f"{prefix}{i // 2}" for i in range(n)]


@pytest.fixture(scope="module")
def reference():
    train = drawn(1, 100)
    real = Labelled(drawn(0), *labels("h"))
    other = Labelled(train[:N], *labels("t"))
    return Reference(real, other, real, train, copy_distance=1e-4, resamples=60)


def test_the_real_images_themselves_are_perfect(reference):
    got, resampled = scores.score(reference, [reference.real.features])
    mean = {name: s["mean"] for name, s in got.items()}
    assert mean["fd"] == pytest.approx(0, abs=1e-6)
    assert mean["kid"] == pytest.approx(0, abs=1e-12)
    assert mean["precision"] == mean["recall"] == mean["top1"] == mean["top5"] == mean["top1_group"] == 1
    assert mean["copies"] == 0
    assert got["top1"]["interval"] == [1, 1] and got["top1"]["spread"] is None
    assert resampled.keys() == {name for name, s in got.items() if s["interval"]}
    assert all(r.shape == (60,) for r in resampled.values())


def test_captions_in_the_wrong_order_lose_retrieval_alone(reference):
    order = np.roll(np.arange(N), 2)  # groups are pairs: every image now lies under another group's caption
    got, _ = scores.score(reference, [reference.real.features[order]])
    assert got["top1"]["mean"] == got["top1_group"]["mean"] == 0
    assert got["fd"]["mean"] == pytest.approx(0, abs=1e-6)


def test_one_of_a_group_for_the_other_keeps_the_group(reference):
    order = np.arange(N) ^ 1
    got, _ = scores.score(reference, [reference.real.features[order]])
    assert got["top1"]["mean"] == 0 and got["top1_group"]["mean"] == 1


def test_another_law_is_farther_than_the_floor_and_intervals_say_so(reference):
    floor, _ = scores.floor(reference)
    far, _ = scores.score(reference, [drawn(2, shift=1.0)])
    for name in ("fd", "kid"):
        low, high = far[name]["interval"]
        assert low < far[name]["mean"] < high and floor[name]["interval"][1] < low
    assert far["recall"]["mean"] < floor["recall"]["mean"]


def test_the_floor_and_the_halves_of_one_law_have_no_kernel_distance(reference):
    floor, _ = scores.floor(reference)
    low, high = floor["kid"]["interval"]
    assert low < 0.3 and abs(floor["kid"]["mean"]) < 0.3
    halves, resampled = scores.halves(reference)
    assert abs(halves["kid"]["mean"]) < 2 * halves["kid"]["spread"]
    assert halves["fd"]["mean"] > floor["fd"]["mean"]  # fewer samples: the bias that KID does not have
    assert len(halves["fd"]["per_seed"]) == scores.SPLITS and not resampled


def test_seeds_are_averaged_with_their_spread(reference):
    sets = [drawn(s) for s in (3, 4, 5)]
    got, resampled = scores.score(reference, sets)
    alone = [scores.score(reference, [s])[0]["kid"]["mean"] for s in sets]
    assert got["kid"]["per_seed"] == pytest.approx(alone)
    assert got["kid"]["mean"] == pytest.approx(np.mean(alone))
    assert got["kid"]["spread"] == pytest.approx(np.std(alone, ddof=1))
    each = [scores.score(reference, [s])[1]["kid"] for s in sets]
    np.testing.assert_allclose(resampled["kid"], np.mean(each, axis=0))


def test_near_copies_move_no_interval_away_from_its_distance():
    """Drawn twice, a group of near-copies raises a resample's distances: the interval stands around the value."""
    pairs = lambda seed: np.repeat(drawn(seed, N // 2), 2, axis=0) + 0.01 * drawn(seed + 10)
    real, other = Labelled(pairs(0), *labels("h")), Labelled(pairs(1), *labels("t"))
    reference = Reference(real, other, real, other.features, copy_distance=1e-4, resamples=60)
    for got, resampled in (scores.floor(reference), scores.score(reference, [pairs(2)])):
        for name in ("kid", "fd"):
            assert resampled[name].mean() == pytest.approx(got[name]["mean"])
            low, high = got[name]["interval"]
            assert low < got[name]["mean"] < high


def test_copies_of_training_images_are_seen(reference):
    copies = reference.train[50 : 50 + N] * 1.001
    got, _ = scores.score(reference, [copies])
    assert got["copies"]["mean"] == 1 and got["nearest_train"]["mean"] < 1e-6
    assert reference.own["copies"] == 0 and reference.own["nearest_train"] > 0.01


def test_a_training_image_is_not_its_own_copy(reference):
    among = Reference(reference.other, reference.real, reference.other, reference.train, 1e-4)
    assert among.own["copies"] == 0


def test_chance_is_blind_drawing(reference):
    got = scores.chance(reference)
    assert got["top1"] == pytest.approx(1 / N) and got["top5"] == pytest.approx(5 / N)
    assert got["top1_group"] == pytest.approx(2 / N)


def test_unequal_numbers_are_an_error(reference):
    with pytest.raises(ValueError, match="39 generated images are held against 40"):
        scores.score(reference, [drawn(0, N - 1)])


def test_halves_need_two_groups_of_two():
    real = Labelled(drawn(0, 3), ["a", "b", "c"], ["a", "b", "c"])
    with pytest.raises(ValueError, match="two halves"):
        scores.halves(Reference(real, real, real, drawn(1), 0.1))
