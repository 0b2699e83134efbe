"""Turns captions into CLIP's token ids, from the tokenizer folder of a Stable Diffusion model."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE

from lcm_jax.weights.json_file import read_object

LENGTH = 77
_SHOWN, _SHOWN_TEXT = 3, 60  # cut captions named in a warning, characters of each
_SUFFIX = "</w>"  # ends the last piece of a word
_SPECIAL = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
}
# Special tokens, endings of English contractions, letters together, digits one by one, other signs together.
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer:
    """CLIP's byte-pair encoding with the tokens and the length that a folder asks for.

    The folder holds tokenizer.json, or vocab.json and merges.txt, beside tokenizer_config.json and (older)
    special_tokens_map.json. Ids are those of diffusers' pipelines with transformers 5: text is normalised (NFC)
    and lower-cased, not repaired by ftfy. With the pad token "!" (SD 2.x, second tokenizer of SDXL) each "!" of
    a caption is that token, too.

    Raises FileNotFoundError where files are missing, ValueError where one is not CLIP's; both name the file.
    """

    def __init__(self, folder: str | os.PathLike, length: int | None = None):
        folder = Path(folder)
        vocabulary, merges, listed = _pieces(folder)
        settings = _json(folder / "tokenizer_config.json")
        if "added_tokens_decoder" not in settings:
            settings |= _json(folder / "special_tokens_map.json")  # these count in older folders
        numbered = sorted(_added(folder, settings, listed).items())
        added = [_token(value) for _, value in numbered]
        special = {name: _token(settings.get(name) or default) for name, default in _SPECIAL.items()}

        try:
            self._tokenizer = tokenizer = _clip(vocabulary, merges, special["unk_token"].content)
        except Exception as error:  # the library raises no narrower one
            raise ValueError(f"{folder}: vocabulary and merges do not fit ({error}); fetch them again") from error
        tokenizer.add_tokens(added)
        known = {token.content for token in added}
        tokenizer.add_tokens([token for token in special.values() if token.content not in known])
        for name, token in special.items():
            if token.content not in vocabulary and token.content not in known:
                raise ValueError(f"{folder}: {name} {token.content!r} is not in the vocabulary; fetch the folder again")
        for (index, _), token in zip(numbered, added, strict=True):
            if (found := tokenizer.token_to_id(token.content)) != index:
                raise ValueError(f"{folder}: added token {token.content!r} is listed as {index}, but falls on {found}")
        ids = {name: tokenizer.token_to_id(token.content) for name, token in special.items()}
        ends = [(special[name].content, ids[name]) for name in ("eos_token", "bos_token")]
        tokenizer.post_processor = processors.RobertaProcessing(*ends, trim_offsets=False, add_prefix_space=False)

        self.pad_id: int = ids["pad_token"]
        self.vocabulary: int = tokenizer.get_vocab_size()  # a text encoder must have as many embeddings
        self.length: int = length or settings.get("model_max_length", LENGTH)
        if not 2 <= self.length <= 10**6:
            raise ValueError(f"{folder}: {self.length} tokens a caption: give `length`, {LENGTH} for Stable Diffusion")
        tokenizer.enable_truncation(self.length)

    def encode(self, captions: Sequence[str]) -> np.ndarray:
        """ids [b, length] int32: start, the caption's pieces, end, padding. The empty caption has no pieces.

        Captions that are longer are cut, with a UserWarning that counts them and names what was cut.
        """
        ids = np.full((len(captions), self.length), self.pad_id, np.int32)
        cut = []
        encoded = self._tokenizer.encode_batch(list(captions))
        for row, (caption, tokens) in enumerate(zip(captions, encoded, strict=True)):
            ids[row, : len(tokens.ids)] = tokens.ids
            if tokens.overflowing:
                rest = caption[tokens.offsets[-2][1] :].strip()
                cut.append(rest if len(rest) <= _SHOWN_TEXT else f"{rest[:_SHOWN_TEXT]}...")
        if cut:
            named = ", ".join(map(repr, cut[:_SHOWN])) + (", ..." if len(cut) > _SHOWN else "")
            warnings.warn(
                f"{len(cut)} of {len(captions)} captions exceed {self.length} tokens; this was cut: {named}",
                stacklevel=2,
            )
        return ids


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]], unknown: str) -> Tokenizer:
    """Normalisation, splitting into words and byte-level pairs, as CLIP has them."""
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, end_of_word_suffix=_SUFFIX))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return tokenizer


def _pieces(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]], list[dict[str, Any]]]:
    """The vocabulary, the merges in order, and the added tokens that tokenizer.json lists."""
    whole, vocabulary, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.is_file():
        content = _json(whole)
        model = content.get("model", {})
        kind = (model.get("type"), model.get("end_of_word_suffix"))
        if kind != ("BPE", _SUFFIX) or not {"vocab", "merges"} <= model.keys():
            raise ValueError(f"{whole} holds no CLIP tokenizer (byte pairs with {_SUFFIX}); give the folder of one")
        pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
        return model["vocab"], pairs, content.get("added_tokens", [])
    if not (vocabulary.is_file() and merges.is_file()):
        raise FileNotFoundError(f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt: fetch them")
    try:
        return *BPE.read_file(str(vocabulary), str(merges)), []
    except Exception as error:  # as above
        raise ValueError(f"{folder}: vocab.json or merges.txt is malformed ({error}); fetch them again") from error


def _added(folder: Path, settings: dict[str, Any], listed: list[dict[str, Any]]) -> dict[int, Any]:
    """Tokens that are looked for before text is split, by id."""
    if "added_tokens_decoder" in settings:
        return {int(index): value for index, value in settings["added_tokens_decoder"].items()}
    extra = _json(folder / "added_tokens.json")
    return {index: {"content": text} for text, index in extra.items()} | {value["id"]: value for value in listed}


def _token(value: str | dict[str, Any]) -> AddedToken:
    if isinstance(value, str):
        return AddedToken(value, special=True)
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(value["content"], **{name: value[name] for name in names if name in value})


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file, {} where there is none."""
    return read_object(path, "fetch it again") if path.is_file() else {}
