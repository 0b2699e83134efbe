"""CLIP's published tokenizer as the folders that a whole model comes with, for files that come without."""

import gzip
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from lcm_jax import cache
from lcm_jax.weights.clip_tokenizer import LENGTH
from lcm_jax.weights.fetch import CLIP_MERGES, fetch

START, END, POINT = "<|startoftext|>", "<|endoftext|>", "!"
FOLDERS = {END: "clip_tokenizer", POINT: "open_clip_tokenizer"}  # by what they pad with
_MERGES = 49152 - 256 - 2  # of the published list, those that CLIP was trained with
_FLAGS = {"lstrip": False, "rstrip": False, "single_word": False}
_NORMALIZED = {POINT: False, START: True, END: False}  # whether a token is known in capitals, too


def folders(pads: Sequence[str], names: Sequence[str]) -> list[Path]:
    """A tokenizer folder of each name, which pads with END (OpenAI's CLIP) or "!" (OpenCLIP); made on first use.

    Raises FetchError where the vocabulary cannot be had.
    """
    places = {cache.folder() / FOLDERS[pad] / name: pad for pad, name in zip(pads, names, strict=True)}
    return [cache.once(where, partial(_fill, pad)) for where, pad in places.items()]


def _fill(pad: str, folder: Path) -> None:
    (path,) = fetch(CLIP_MERGES).iterdir()
    merges = gzip.decompress(path.read_bytes()).decode().split("\n")[1 : 1 + _MERGES]
    letters = sorted(ByteLevel.alphabet())
    pieces = [*letters, *(c + "</w>" for c in letters), *(merge.replace(" ", "") for merge in merges), START, END]
    ids = {piece: index for index, piece in enumerate(pieces)}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "do_lower_case": True, **special}
    if pad == POINT:  # as SDXL's second tokenizer has them; Stable Diffusion 1 leaves them to their names
        told = lambda token, known: {"content": token, "normalized": known, "special": True, **_FLAGS}
        settings["added_tokens_decoder"] = {str(ids[token]): told(token, known) for token, known in _NORMALIZED.items()}
    else:
        token = lambda content: {"content": content, "normalized": True, **_FLAGS}
        special |= {name: token(special[name]) for name in ("bos_token", "eos_token", "unk_token")}
        settings |= {name: {**value, "__type": "AddedToken"} for name, value in special.items() if name != "pad_token"}
    (folder / "vocab.json").write_text(json.dumps(ids, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
