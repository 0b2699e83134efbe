"""CLIP's token ids against transformers, over a small vocabulary and (where it can be fetched) the published one."""

import gzip
import json
import shutil
import warnings

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from lcm_jax.weights.clip_published import END, POINT, START
from lcm_jax.weights.clip_published import folders as clip_folders
from lcm_jax.weights.clip_tokenizer import ClipTokenizer
from lcm_jax.weights.fetch import CLIP_MERGES, FetchError, fetch

MERGES = """t h;th e</w>;c a;ca t</w>;' s</w>;i n;in g</w>;! !;! !</w>;!! !</w>;Ã ©</w>;ð Ł;ðŁ ĺ;o n;p h;ph o;pho t
phot o</w>;. .;.. .</w>;d o;do g</w>;' t</w>;' re</w>;r e;l l</w>;' ll</w>"""
CAPTIONS = [
    "",
    " ",
    "a photo of a cat",
    "A PHOTO of the dog's... isn't",
    "we're I'd they'll you've 'twas 'S rock'n'roll ’tis",
    "! !! !!! hello!! world! a!b",
    "  runs \t of\n\r\nwhite\x0b space\u00a0and\u3000wide\u2003ones  ",
    "12345 3.14 1,000 ½ ² Ⅷ ٣٤ 1st 2x4",
    "café cafe\u0301 naïve ÜNÏCÖDÉ ẞ İstanbul ΣΑΣ ŉ",
    "😀👍🏽👨\u200d👩\u200d👧 🇩🇪 ☃\ufe0f ♥",
    "日本語のテキスト 中文 한국어 العربية हिन्दी ไทย",
    f"{START} x {END} y <|ENDOFTEXT|> <|StartOfText|> a{END}b <|endoftext",
    "snake_case kebab-case a/b\\c (x) [y] {z} <w> \"q\" ‘c’ @#$%^&*",
    "\u200bzero\u200dwidth\ufeffmark \x00nul \x07bell \U000e0041",
    "ﬁ ﬂ ﬀ &amp; â€™ ｆｕｌｌ！",
    "word " * 300,
    "x" * 500,
    "!" * 200,
    "é" * 200,
]


def vocabulary(merges):
    """Bytes, bytes that end a word, merged pieces, special tokens: the order that gives CLIP its ids."""
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(c + "</w>" for c in letters), *("".join(pair) for pair in merges), START, END]
    return {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}


def legacy(content, **more):
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **flags, **more}


def lay(folder, kind, merges):
    """A tokenizer folder as Stable Diffusion 1.x ("sd1"), 2.x ("sd2") or SDXL ("xl2", the second) has it."""
    folder.mkdir()
    ids = vocabulary(merges)
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    typed = lambda content: legacy(content, __type="AddedToken")
    config = {"model_max_length": 77, "pad_token": END, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True}
    config |= {"bos_token": typed(START), "eos_token": typed(END), "unk_token": typed(END)}
    special = {"bos_token": legacy(START), "eos_token": legacy(END), "unk_token": legacy(END)}
    if kind == "xl2":
        config |= {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}
        added = {"!": False, START: True, END: False}
        config["added_tokens_decoder"] = {
            str(ids[text]): legacy(text, special=True) | {"normalized": normalized}
            for text, normalized in added.items()
        }
    # SD 2.x names its padding in special_tokens_map.json alone.
    special["pad_token"] = END if kind == "sd1" else "!"
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def small_merges():
    pairs = [tuple(line.split(" ")) for line in MERGES.replace("\n", ";").split(";")]
    order = sorted(pairs, key=lambda pair: len("".join(pair).replace("</w>", "")))  # parts before wholes
    known = set(ByteLevel.alphabet()) | {c + "</w>" for c in ByteLevel.alphabet()}
    kept = []
    for a, b in order:
        if a in known and b in known:
            kept.append((a, b))
            known.add(a + b)
    return kept


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    where = tmp_path_factory.mktemp("tokenizers")
    return {kind: lay(where / kind, kind, small_merges()) for kind in ("sd1", "sd2", "xl2")}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Folders with CLIP's own 49,408 tokens."""
    try:
        (path,) = fetch(CLIP_MERGES).iterdir()
    except FetchError as error:
        pytest.skip(f"the published vocabulary is not at hand: {error}")
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    where = tmp_path_factory.mktemp("published")
    return {kind: lay(where / kind, kind, [tuple(line.split()) for line in lines]) for kind in ("sd1", "xl2")}


def quietly(tokenizer, captions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return tokenizer.encode(captions)


def theirs(folder):
    """As diffusers' pipelines call it."""
    tokenizer = pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(folder)
    call = dict(padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="np")
    return tokenizer, lambda captions: tokenizer(captions, **call).input_ids


@pytest.mark.parametrize("kind", ["sd1", "sd2", "xl2"])
def test_every_kind_of_folder_against_transformers(folders, kind, tmp_path):
    """And again from tokenizer.json, which is all of the vocabulary that version 5 saves."""
    tokenizer, reference = theirs(folders[kind])
    want = reference(CAPTIONS)
    np.testing.assert_array_equal(quietly(ClipTokenizer(folders[kind]), CAPTIONS), want)
    tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    np.testing.assert_array_equal(quietly(ClipTokenizer(tmp_path), CAPTIONS), want)


def test_random_characters_against_transformers(folders):
    rng = np.random.default_rng(0)
    ranges = [(32, 127), (33, 48), (160, 880), (768, 880), (0x1F300, 0x1F700), (1, 0x3000)]
    draw = lambda a, b: "".join(map(chr, rng.integers(a, b, rng.integers(0, 40)))) + " a'S " + chr(rng.integers(a, b))
    captions = [draw(a, b) for a, b in ranges for _ in range(60)]
    got = quietly(ClipTokenizer(folders["sd2"]), captions)
    np.testing.assert_array_equal(got, theirs(folders["sd2"])[1](captions))


def test_published_ids(published):
    """Ids that are known of CLIP, and those of "!" in SDXL, where it is the padding token, too."""
    first, second = (ClipTokenizer(published[kind]) for kind in ("sd1", "xl2"))
    assert (first.pad_id, second.pad_id, first.vocabulary) == (49407, 0, 49408)
    ids = first.encode(["a photo of a cat", "", "! !! !!!"])
    assert ids.shape == (3, 77) and ids.dtype == np.int32
    np.testing.assert_array_equal(ids[0], [49406, 320, 1125, 539, 320, 2368, *[49407] * 71])
    np.testing.assert_array_equal(ids[1], [49406, *[49407] * 76])
    np.testing.assert_array_equal(ids[2, :6], [49406, 256, 748, 995, 49407, 49407])
    ids = second.encode(["! !! !!!", ""])
    np.testing.assert_array_equal(ids[0], [49406, *[0] * 6, 49407, *[0] * 69])
    np.testing.assert_array_equal(ids[1], [49406, 49407, *[0] * 75])


def test_the_published_vocabulary_against_transformers(published):
    got = quietly(ClipTokenizer(published["sd1"]), CAPTIONS)
    np.testing.assert_array_equal(got, theirs(published["sd1"])[1](CAPTIONS))


def test_a_model_without_tokenizers_is_given_the_published_ones(published, tmp_path, monkeypatch):
    fetched = fetch(CLIP_MERGES)
    monkeypatch.setenv("LCM_JAX_CACHE", str(tmp_path))
    (tmp_path / fetched.name).symlink_to(fetched)
    made = clip_folders((END, POINT), ("tokenizer", "tokenizer_2"))
    assert [path.name for path in made] == ["tokenizer", "tokenizer_2"]
    for folder, kind in zip(made, ("sd1", "xl2"), strict=True):
        got = quietly(ClipTokenizer(folder), CAPTIONS)
        np.testing.assert_array_equal(got, quietly(ClipTokenizer(published[kind]), CAPTIONS))
        np.testing.assert_array_equal(got, theirs(folder)[1](CAPTIONS))
    written = (made[0] / "vocab.json").stat().st_mtime_ns
    assert clip_folders((END,), ("tokenizer",)) == made[:1] and (made[0] / "vocab.json").stat().st_mtime_ns == written
    assert not list(tmp_path.rglob(".making-*"))


def test_what_is_cut_is_counted_and_named(folders):
    tokenizer = ClipTokenizer(folders["sd1"], length=6)
    message = f"2 of 3 captions exceed 6 tokens; this was cut: 'CAFÉ 😀 cat', '{'the ' * 15}...'"
    with pytest.warns(UserWarning) as caught:
        ids = tokenizer.encode(["Cat dog THE cat CAFÉ 😀 cat", "the", "the " * 40])
    assert [str(w.message) for w in caught] == [message]
    assert ids.shape == (3, 6) and (ids[[0, 2], -1] == ids[1, 2]).all()  # the closing token stays


def test_a_caption_that_just_fits_is_silent(folders):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = ClipTokenizer(folders["sd2"]).encode(["the " * 75])
    assert ids[0, -1] != 0


def test_no_captions_at_all(folders):
    assert ClipTokenizer(folders["sd1"]).encode([]).shape == (0, 77)


def changed(folders, tmp_path, file, content):
    folder = tmp_path / "changed"
    shutil.copytree(folders["sd1"], folder)
    (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_learned_tokens_have_their_ids(folders, tmp_path):
    """Textual inversion adds tokens behind the vocabulary."""
    first = len(vocabulary(small_merges()))
    folder = changed(folders, tmp_path, "added_tokens.json", {"<cat-toy>": first, "My Style": first + 1})
    captions = ["a <cat-toy> in My Style, my style", "<CAT-toy>x"]
    tokenizer = ClipTokenizer(folder)
    assert tokenizer.vocabulary == first + 2
    np.testing.assert_array_equal(tokenizer.encode(captions), theirs(folder)[1](captions))


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", [], "tokenizer_config.json holds no JSON object"),
        ("special_tokens_map.json", {"pad_token": "<pad>"}, "pad_token '<pad>' is not in the vocabulary"),
        ("tokenizer.json", {"model": {"type": "WordPiece"}}, "tokenizer.json holds no CLIP tokenizer"),
        ("added_tokens.json", {"<x>": 9999}, "added token '<x>' is listed as 9999, but falls on"),
        ("vocab.json", '{"a": 1}', "vocabulary and merges do not fit"),
        ("merges.txt", "#version: 0.2\na b c\n", "vocab.json or merges.txt is malformed"),
        ("tokenizer_config.json", {"model_max_length": 10**30}, f"{10**30} tokens a caption: give `length`"),
    ],
)
def test_a_folder_that_is_wrong_is_named(folders, tmp_path, file, content, message):
    with pytest.raises(ValueError, match=message) as error:
        ClipTokenizer(changed(folders, tmp_path, file, content))
    assert "\n" not in str(error.value) and "changed" in str(error.value)


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither tokenizer.json nor vocab.json and merges.txt"):
        ClipTokenizer(tmp_path)
