import numpy as np
import pytest
import tiny

from lcm_jax.data.image_loader import ImageRows, make_image_loader
from lcm_jax.data.images import fit


@pytest.fixture
def options(tmp_path):
    return {"folder": str(tiny.pictures(tmp_path / "pictures"))}


def test_an_epoch_holds_every_picture_once_at_the_size_asked_for(options):
    loader = make_image_loader("image_folder", 12, 8, split=None, options=options)
    batches = [next(loader) for _ in range(3)]
    assert loader.size == 24 and batches[0]["image"].shape == (8, 12, 12, 3)
    assert sorted(np.concatenate([b["index"] for b in batches])) == list(range(24))
    image, index = batches[0]["image"][0], batches[0]["index"][0]
    source = np.random.default_rng(int(loader.row(index).key[:2])).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    np.testing.assert_array_equal(image, fit(source, 12))
    loader.close()


def test_its_position_is_taken_up_again(options):
    first = make_image_loader("image_folder", 8, 4, options=options, seed=3)
    next(first)
    position = first.get_state()
    expected = next(first)
    again = make_image_loader("image_folder", 8, 4, options=options, seed=3)
    again.set_state(position)
    np.testing.assert_array_equal(next(again)["image"], expected["image"])
    other = make_image_loader("image_folder", 8, 4, options=options, seed=4)
    with pytest.raises(ValueError, match="the stored data position had seed 3, now 4"):
        other.set_state(position)


def test_an_empty_split_and_a_broken_picture_are_named(options, tmp_path):
    with pytest.raises(ValueError, match="'image_folder' has no examples of split 'test'"):
        make_image_loader("image_folder", 8, 4, split="test", options=options)
    (tmp_path / "pictures" / "05.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="05.png cannot be read"):
        make_image_loader("image_folder", 8, 4, split=None, options=options)


def test_rows_are_told_apart_by_their_names(options):
    from lcm_jax.data import reader

    examples = reader("image_folder", **options)
    assert ImageRows(examples, 4).fingerprint != ImageRows(examples[1:], 4).fingerprint
