import numpy as np
import pytest
from PIL import Image

from lcm_jax.evaluate import grid

RED, BLUE = (np.full((1, 8, 8, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def test_images_stand_row_by_row_on_white():
    sheet = np.asarray(grid.grid(np.concatenate([RED, BLUE, BLUE]), 2))
    assert sheet.shape == (2 * 10 + 2, 2 * 10 + 2, 3)
    assert (sheet[2:10, 2:10] == RED[0]).all() and (sheet[2:10, 12:20] == BLUE[0]).all()
    assert (sheet[12:20, 2:10] == BLUE[0]).all() and (sheet[12:20, 12:20] == 255).all()
    assert (sheet[:2] == 255).all()


def test_zoom_enlarges_and_labels_take_room():
    plain = grid.grid(RED, 1, zoom=3)
    assert plain.size == (28, 28) and (np.asarray(plain)[2:26, 2:26] == RED[0, 0, 0]).all()
    labelled = grid.grid(RED, 1, rows_labels=["a red square"], column_labels=["4\nsteps"], zoom=3)
    assert labelled.size[0] > 60 and labelled.size[1] > 40
    pixels = np.asarray(labelled)
    assert (pixels[-26:-2, -26:-2] == RED[0, 0, 0]).all() and pixels[:, :-28].min() < 100 and pixels[:-28].min() < 100


def test_a_long_label_takes_lines_not_width():
    tall = np.zeros((1, 60, 60, 3), np.uint8)
    labels = ("a red square of felt on a table", "a red square of felt on a table" + " again" * 40)
    short, long = (grid.grid(tall, 1, rows_labels=[label]) for label in labels)
    assert short.size[0] < long.size[0] < 400 and long.size[1] == short.size[1]
    assert grid.wrapped("a " * 200, 3).count("\n") == 2 and grid.wrapped("a " * 200, 3).endswith(" ...")
    assert grid.wrapped("", 3) == ""


def test_a_file_remembers_its_settings(tmp_path):
    settings = {"prompt": "un café", "w": 2.5}
    path = grid.save(tmp_path / "deep" / "x.png", RED[0], settings)
    assert grid.settings(path) == settings and list(path.parent.iterdir()) == [path]
    with Image.open(path) as image:
        assert (np.asarray(image) == RED[0]).all()
    grid.save(path, grid.grid(BLUE, 1), {"w": 3})
    assert grid.settings(path) == {"w": 3}


def test_what_cannot_be_moved_to_its_place_leaves_no_scratch_file(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError):
        grid.save(tmp_path / "x.png", RED[0], {})
    assert list(tmp_path.iterdir()) == [tmp_path / "x.png"]


def test_a_foreign_file_has_none(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png holds no settings"):
        grid.settings(tmp_path / "x.png")
