"""Captions without pictures: of a file, of the words of others, and the examples a teacher draws of them."""

import pytest

from lcm_jax.data import encode, prompts
from lcm_jax.data.example import HELDOUT, TRAIN, Example
from lcm_jax.data.shorten import FILLERS, parts


def example(caption, group, split=TRAIN):
    return Example(group + caption, caption, lambda: None, group, split)


SET = [
    example("woman and man holding hands: dark skin tone", "holding"),
    example("flag of saint lucia", "flag"),
    example("red heart", "heart"),
    example("blue cat", "cat", HELDOUT),
    example("of", "nothing"),
]


def test_new_captions_are_made_of_the_words_of_training_captions():
    made = prompts.recombined(SET, 60)
    assert len(set(made)) == 60 and not set(made) & {e.caption for e in SET}
    known = {word for e in SET if e.split == TRAIN for word in parts(e.caption)[0]}
    for caption in made:
        words, phrases = parts(caption)
        assert set(words) <= known and set(words) - FILLERS and "cat" not in words
        assert phrases in ([], ["dark skin tone"])
    assert any(phrases for _, phrases in map(parts, made))


def test_both_ways_of_recombining():
    two = [example("big red heart", "a"), example("small blue cat", "b")]
    made = [caption.split() for caption in prompts.recombined(two, 40)]
    swapped = [words for words in made if len(words) == 3 and words[0] == "big" and words[2] == "heart"]
    assert swapped and all(words[1] in ("small", "blue", "cat") for words in swapped)
    assert any({"heart", "cat"} <= set(words) for words in made)


def test_groups_are_drawn_alike_and_the_seed_decides():
    many = [example(f"lion {i}: light skin tone", "lion") for i in range(200)] + [example("red heart", "heart")]
    made = prompts.recombined(many, 100)
    assert 40 < sum("red" in c or "heart" in c for c in made) <= 100
    assert made == prompts.recombined(many, 100) != prompts.recombined(many, 100, seed=1)


def test_where_the_words_do_not_suffice():
    with pytest.raises(ValueError, match="the words of 1 groups of training captions made . new captions, not 50"):
        prompts.recombined([example("red heart", "heart")], 50)
    with pytest.raises(ValueError, match="0 groups"):
        prompts.recombined([example("red heart", "heart", HELDOUT)], 1)
    with pytest.raises(ValueError, match="ask for at least 1"):
        prompts.recombined(SET, 0)


def test_a_file_of_captions(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a  blue cat\n\n a red heart \na blue cat\n")
    assert prompts.read(file) == ["a blue cat", "a red heart", "a blue cat"]
    assert [e.caption for e in prompts.to_draw(prompts.read(file))] == ["a blue cat", "a red heart"]
    file.write_bytes("\ufeffcafé\n".encode())  # as some editors begin it
    assert prompts.read(file) == ["café"]
    file.write_bytes("a blue\u2028cat\r\na\x0bdog\r\n".encode())  # what is no end of a line to other programs
    assert prompts.read(file) == ["a blue cat", "a dog"]
    file.write_bytes("café\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"prompts.txt is not text in UTF-8 \(.* at byte 3\); save it so"):
        prompts.read(file)
    file.write_text(" \n")
    with pytest.raises(ValueError, match="holds no caption"):
        prompts.read(file)
    with pytest.raises(FileNotFoundError, match=r"none\.txt does not exist; give a text file"):
        prompts.read(tmp_path / "none.txt")


def test_keys_are_the_captions_own():
    made = prompts.to_draw(["a blue cat", "a red heart"], 2)
    assert [e.caption for e in made] == ["a blue cat"] * 2 + ["a red heart"] * 2
    assert len({e.key for e in made}) == 4 and made[2:] == prompts.to_draw(["a red heart"], 2)
    assert all(e.load is None and e.split == TRAIN for e in made) and made[0].group == made[1].group
    with pytest.raises(ValueError, match="at least 1"):
        prompts.to_draw(["a"], 0)


def test_captions_without_pictures_are_not_encoded_as_pictures(tmp_path):
    with pytest.raises(ValueError, match=r"have them drawn by launch\.synthesize"):
        encode.encode(prompts.to_draw(["a cat"]), lambda x: x, lambda c: c, tmp_path, 16)
