"""Statistics of real images are kept, found again, and never taken for those of anything else."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from real_images import in_memory

from lcm_jax.assess import reference_statistics as subject
from lcm_jax.assess.picture_scores import score_pictures
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.evaluate.precision_recall import precision_recall

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 6, 6, 3), dtype=np.uint8)


class Counting:
    """A network of three means that counts how many rows it was given."""

    def __init__(self):
        self.rows = 0

    def __call__(self, pixels):
        self.rows += len(pixels)
        return pixels.mean((1, 2))


@pytest.fixture
def net():
    return FeatureNet("means", "weights 1", Counting(), "none")


def test_they_are_taken_once_and_are_right(net, tmp_path):
    first = subject.reference(net, in_memory(IMAGES), tmp_path, 5)
    again = subject.reference(net, in_memory(IMAGES.copy()), tmp_path, 5)
    assert net.apply.rows == 20 and first.count == again.count == 20
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.scatter, again.scatter)
    means = IMAGES.mean((1, 2)).astype(np.float32)
    np.testing.assert_allclose(first.covariance, np.cov(means.T), rtol=1e-6)
    (file,) = tmp_path.iterdir()
    for_others = np.load(file)  # by the names other FID programs look for
    np.testing.assert_array_equal(for_others["mu"], first.mean)
    np.testing.assert_array_equal(for_others["sigma"], first.covariance)


def test_other_pictures_weights_or_resize_are_others(net, tmp_path):
    changed = IMAGES.copy()
    changed[7, 3, 3, 1] ^= 1
    kinds = [
        (net, IMAGES),
        (net, changed),
        (net, IMAGES[:-1]),
        (net, IMAGES[::-1]),
        (replace(net, hash="weights 2"), IMAGES),
        (replace(net, resize="by half"), IMAGES),
        (replace(net, name="other"), IMAGES),
    ]
    for i, (network, images) in enumerate(kinds):
        subject.reference(network, in_memory(images), tmp_path, 5)
        assert len(list(tmp_path.iterdir())) == i + 1
    assert net.apply.rows == 6 * 20 + 20  # 19 pictures are padded to 20


@pytest.mark.parametrize("harm", ["truncated", "another's", "numbers", "no file of ours"])
def test_what_is_stale_or_damaged_is_made_anew(net, tmp_path, harm):
    want = subject.reference(net, in_memory(IMAGES), tmp_path, 5)
    (file,) = tmp_path.iterdir()
    if harm == "truncated":
        file.write_bytes(file.read_bytes()[:-40])
    elif harm == "no file of ours":
        np.savez(file, mu=want.mean, sigma=want.covariance)
    else:
        content = dict(np.load(file))
        if harm == "numbers":
            content["scatter"] = content["scatter"] * 1.001
        else:
            said = json.loads(str(content["about"])) | {"weights": "weights 0"}
            content["about"] = np.array(json.dumps(said))
        np.savez(file, **content)
    got = subject.reference(net, in_memory(IMAGES), tmp_path, 5)
    assert net.apply.rows == 40
    np.testing.assert_array_equal(got.scatter, want.scatter)
    subject.reference(net, in_memory(IMAGES), tmp_path, 5)
    assert net.apply.rows == 40  # and kept again


def test_files_are_known_by_their_bytes(net, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(7)]
    for path, picture in zip(paths, IMAGES, strict=False):
        Image.fromarray(picture).save(path)
    real = subject.of_files(paths, 6)
    found = subject.reference(net, real, tmp_path / "kept", 3)
    np.testing.assert_allclose(found.mean, IMAGES[:7].mean((0, 1, 2)), rtol=1e-6)
    assert subject.of_files(paths, 6).identity == real.identity
    assert len({real.identity, subject.of_files(paths, 7).identity, subject.of_files(paths[:-1], 6).identity}) == 3
    Image.fromarray(IMAGES[9]).save(paths[2])  # changed in place
    assert subject.of_files(paths, 6).identity != real.identity
    with pytest.raises(ValueError, match="no files"):
        subject.of_files([], 6)


def test_pictures_of_any_source_are_known_by_their_pixels(net, tmp_path):
    read = [lambda i=i: IMAGES[i] for i in range(20)]
    real = subject.of_loads(read)
    assert real.identity == subject.of_loads([*read]).identity and real.count == 20
    assert len({real.identity, subject.of_loads(read[::-1]).identity, subject.of_loads(read[1:]).identity}) == 3
    assert [len(images) for images in real.sets(8)] == [8, 8, 4]
    np.testing.assert_array_equal(np.concatenate(list(real.sets(8))), IMAGES)
    found = subject.reference(net, real, tmp_path, 5)
    np.testing.assert_allclose(found.mean, IMAGES.mean((0, 1, 2)), rtol=1e-6)
    with pytest.raises(ValueError, match="no real images"):
        subject.of_loads([])


def test_some_of_them_are_drawn_once_and_for_all(net, tmp_path):
    real = in_memory(IMAGES)
    some = subject.some_features(net, real, 8, tmp_path, 4)
    whole = IMAGES.mean((1, 2)).astype(np.float32)
    rows = [int(np.abs(whole - one).sum(1).argmin()) for one in some]
    np.testing.assert_array_equal(some, whole[rows])
    assert rows == sorted(set(rows)) != list(range(8)) and len(rows) == net.apply.rows == 8  # from all over the set
    np.testing.assert_array_equal(subject.some_features(net, real, 8, tmp_path, 4), some)
    assert net.apply.rows == 8
    (file,) = tmp_path.iterdir()
    np.savez(file, **{**np.load(file), "features": some + 1})
    np.testing.assert_array_equal(subject.some_features(net, real, 8, tmp_path, 4), some)
    assert subject.some_features(net, real, 9, tmp_path, 4).shape == (9, 3)
    subject.reference(net, real, tmp_path, 4)
    assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ValueError, match="21 of 20 real images"):
        subject.some_features(net, real, 21, tmp_path)


def test_pictures_that_stream_by_are_scored(net, tmp_path):
    real = subject.reference(net, in_memory(IMAGES), tmp_path, 5)
    other = np.random.default_rng(1).integers(0, 200, (13, 6, 6, 3), dtype=np.uint8)
    found = score_pictures([other[:8], other[8:]], ["a"] * 13, net, real, batch=4)
    want = frechet_distance(moments(other.mean((1, 2))), moments(IMAGES.mean((1, 2))))
    assert found["n"] == 13 and found["frechet"]["name"] == "FD-means" and "clip_score" not in found
    assert found["frechet"]["value"] == pytest.approx(want, rel=1e-5)
    assert score_pictures([IMAGES], ["a"] * 20, net, real)["frechet"]["value"] == pytest.approx(0, abs=1e-8)
    json.dumps(found)
    with pytest.raises(ValueError, match="13 pictures and 12 captions"):
        score_pictures([other], ["a"] * 12, net, real)


def test_precision_and_recall_are_of_the_first_pictures(net, tmp_path):
    real = subject.reference(net, in_memory(IMAGES), tmp_path, 5)
    of = lambda images: images.mean((1, 2)).astype(np.float32)
    other = np.random.default_rng(1).integers(0, 250, (21, 6, 6, 3), dtype=np.uint8)
    sets = [other[:8], other[8:16], other[16:]]
    found = score_pictures(sets, None, net, real, manifold=of(IMAGES[:13]), batch=4)
    precision, recall = precision_recall(of(IMAGES[:13]), of(other[:13]), 3)
    assert found["manifold"] == {"precision": precision, "recall": recall, "n": 13, "k": 3} and found["n"] == 21
    assert 0 < recall < 1
    with pytest.raises(ValueError, match="8 features came, which is not this process's turn of 13"):
        score_pictures(sets[:1], None, net, real, manifold=of(IMAGES[:13]), batch=4)
