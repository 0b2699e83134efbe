"""Reader of Noto emoji: the 128x128 pictures of github.com/googlefonts/noto-emoji, captions from `emoji`."""

from functools import partial
from pathlib import Path

from lcm_jax.data import images, twemoji
from lcm_jax.data.example import Example, split_of, with_tag

ATTRIBUTION = "Noto Emoji, copyright Google LLC, Apache License 2.0; https://github.com/googlefonts/noto-emoji"
PREFIX = "emoji_u"


def examples(
    folder: str | Path,
    tag: str | None = None,
    heldout: float = 0.1,
    tones: bool = False,
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """Every named picture of `folder` (png/128 of a clone), sorted by key; those of skin tones only with `tones`.

    `group` is the base emoji without skin tone.
    Raises FileNotFoundError for no folder, ValueError for one without named emoji.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"emoji folder {folder} does not exist; give png/128 of a clone of noto-emoji")
    names = twemoji.emoji_names()
    rows = []
    for path in sorted(folder.glob(f"{PREFIX}*.png")):
        characters = twemoji.characters_of(path.stem.removeprefix(PREFIX).replace("_", "-"))
        name = names.get(characters.replace(twemoji.PRESENTATION, ""))
        if name is None or (not tones and twemoji.TONES & frozenset(characters)):
            continue
        words, group = twemoji.words_of(name, characters), twemoji.base_emoji(characters) or "skin-tone"
        rows.append(
            Example(
                key=path.stem,
                caption=twemoji.caption_of(words),
                load=partial(look.decode, path),
                group=group,
                split=split_of(group, heldout),
                tags=twemoji.tags_of(characters, words),
            )
        )
    if not rows:
        raise ValueError(f"no named emoji among the files of {folder}; expected such as {PREFIX}1f600.png")
    return with_tag(rows, tag)
