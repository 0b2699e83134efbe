"""Shorter captions: what they keep, that they are the same every time, and what cannot be shortened."""

import pytest

from lcm_jax.data.example import HELDOUT, TRAIN, Example
from lcm_jax.data.shorten import FILLERS, captions, shortened


def example(caption, key="k", split=TRAIN):
    return Example(key, caption, lambda: None, "g", split)


def words(caption):
    return caption.replace(":", "").replace(",", "").split()


def test_words_keep_their_order_and_say_something():
    whole = "woman and man holding hands: medium-light skin tone, dark skin tone"
    made = shortened([example(whole, str(i)) for i in range(40)], 3)
    assert 80 < len(made) <= 120 and len({e.caption for e in made}) > 10
    for e in made:
        assert e.caption != whole
        rest = iter(words(whole))
        assert all(word in rest for word in words(e.caption))
        subject = e.caption.partition(": ")[0]
        assert set(subject.split()) <= set("woman and man holding hands".split()) and set(subject.split()) - FILLERS
        assert e.caption.partition(": ")[2] in (
            "", "medium-light skin tone", "dark skin tone", "medium-light skin tone, dark skin tone",
        )  # fmt: skip


def test_names_are_new_and_everything_else_is_the_pictures():
    made = shortened([example("red heart", "2764")], 5)
    assert sorted(e.caption for e in made) == ["heart", "red"]
    assert [e.key for e in made] == ["2764~1", "2764~2"]
    assert all(e.group == "g" and e.split == TRAIN for e in made)


def test_the_key_alone_decides():
    a, b = example("flag of saint lucia", "a"), example("flag of saint lucia", "b")
    assert captions(a, 4) == captions(a, 4)
    assert shortened([a, b], 2)[-1] == shortened([b], 2)[-1]


def test_held_out_pictures_and_single_words_are_left_out():
    assert captions(example("the of"), 2) == [] and captions(example("cat"), 2) == []
    kept = shortened([example("blue car", "a"), example("green car", "b", HELDOUT), example("cat", "c")], 1)
    assert [e.key for e in kept] == ["a~1"]
    with pytest.raises(ValueError, match="no training caption can be shortened"):
        shortened([example("cat")], 1)
    with pytest.raises(ValueError, match="give at least 1"):
        shortened([example("blue car")], 0)
