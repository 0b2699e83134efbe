"""Crops: their place, the ids that describe them, and that the key alone decides."""

import hashlib

import numpy as np
import pytest

from lcm_jax.data import images
from lcm_jax.data.crop import Crop


def ramp(height, width):
    """A picture whose red is its row and whose green is its column, four levels a pixel."""
    rows, columns = np.meshgrid(np.arange(height) * 4, np.arange(width) * 4, indexing="ij")
    return np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)


def test_the_centre_is_what_fit_cuts_and_the_ids_say_where():
    for shape, corner in [((16, 16), [0, 0]), ((16, 40), [0, 12]), ((30, 10), [16, 0]), ((20, 24), [0, 2])]:
        image = ramp(*shape)
        pixels, ids = Crop(16, 16)(image, "k")
        np.testing.assert_array_equal(pixels, images.fit(image, 16))
        assert ids.tolist() == [*shape, *corner, 16, 16] and ids.dtype == np.int32


def test_random_crops_lie_where_their_ids_say():
    image, crop = ramp(16, 48), Crop(16, 16, "random")
    lefts = []
    for i in range(300):
        pixels, ids = crop(image, f"key {i}")
        height, width, top, left, *target = ids.tolist()
        assert (height, width, top, target) == (16, 48, 0, [16, 16])
        np.testing.assert_array_equal(pixels, image[:, left : left + 16])
        lefts.append(left)
    assert min(lefts) == 0 and max(lefts) == 32  # both edges are reached
    counts = np.bincount(np.array(lefts) // 11, minlength=3)[:3]
    assert (counts > 70).all()  # even: 100 each expected, 8.2 the spread


def test_ids_are_in_pixels_of_the_resized_picture():
    image = ramp(64, 32)
    for i in range(20):
        pixels, ids = Crop(16, 16, "random")(image, str(i))  # resized to 32 x 16
        top = ids[2]
        assert 0 <= top <= 16 and ids[3] == 0
        # eight levels a resized row; away from the edges the filter keeps a ramp
        np.testing.assert_allclose(pixels[2:-2, 0, 0], 8 * (top + np.arange(2, 14)) + 2, atol=1.1)
    tops = {int(Crop(16, 16, "random")(image, str(i))[1][2]) for i in range(300)}
    assert tops == set(range(17))


def test_a_rectangle_is_cropped_alike():
    image = ramp(40, 60)
    pixels, ids = Crop(20, 60, "random")(image, "k")
    assert pixels.shape == (20, 60, 3) and ids.tolist() == [40, 60, ids[2], 0, 20, 60] and 0 <= ids[2] <= 20
    np.testing.assert_array_equal(pixels, image[ids[2] : ids[2] + 20])


def test_the_key_and_the_seed_decide_and_nothing_else():
    image = ramp(16, 48)
    ids = lambda seed, key: Crop(16, 16, "random", 0.5, seed)(image, key)[1].tolist()
    drawn = int.from_bytes(hashlib.sha256(b"0/left/a").digest()[:8], "big") / 2**64
    assert ids(0, "a") == ids(0, "a") == [16, 48, 0, int(33 * drawn), 16, 16]  # the same on every machine
    assert len({tuple(ids(seed, "a")) for seed in range(10)}) > 5
    assert len({tuple(ids(0, str(key))) for key in range(10)}) > 5


def test_the_share_of_mirrors_is_the_one_asked_for():
    image = ramp(16, 16)
    mirrored = [
        np.array_equal(Crop(16, 16, flip=0.3)(image, str(i))[0], image[:, ::-1]) for i in range(500)
    ]
    assert 0.24 < np.mean(mirrored) < 0.36
    np.testing.assert_array_equal(Crop(16, 16, flip=1.0)(image, "k")[0], image[:, ::-1])
    np.testing.assert_array_equal(Crop(16, 16, flip=0.0)(image, "k")[0], image)


def test_a_crop_of_a_mirrored_picture_is_named_by_its_place_there():
    image = ramp(16, 48)
    pixels, ids = Crop(16, 16, "random", 1.0)(image, "k")
    np.testing.assert_array_equal(pixels, image[:, ::-1][:, ids[3] : ids[3] + 16])


@pytest.mark.parametrize(
    "settings, message",
    [
        ((16, 16, "middle"), "crop is 'middle'; choose one of center, random"),
        ((16, 16, "random", 1.5), "flip is 1.5; it is the share"),
        ((0, 16), "image size 0x16"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Crop(*settings)


def test_only_settings_that_differ_from_the_default_are_remembered():
    assert Crop(16, 16, seed=3).settings == {}
    assert Crop(16, 16, "random").settings == {"place": "random", "seed": 0}
    assert Crop(16, 16, flip=0.5, seed=2).settings == {"flip": 0.5, "seed": 2}
