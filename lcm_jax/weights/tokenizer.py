"""Turns captions into token ids of one length with the tokenizer.json beside a checkpoint."""

import os
import warnings
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

_PAD = "[PAD]"
_SHOWN = 3  # cut captions named in a warning


class CaptionTokenizer:
    """A saved tokenizer; the empty caption is the unconditional one (special tokens only)."""

    def __init__(self, path: str | os.PathLike):
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no tokenizer at {path}: fetch the encoder's files again")
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        pad = self._tokenizer.token_to_id(_PAD)
        if pad is None:
            raise ValueError(f"{path} has no token {_PAD!r} to pad with: fetch the encoder's files again")
        self.pad_id: int = pad

    def encode(self, captions: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """ids [b, l] int32, padded, and mask [b, l] bool (true where a token stands), l = max_length.

        Captions that are longer are cut, with a UserWarning that counts and names them.
        """
        self._tokenizer.enable_truncation(max_length)
        encoded = self._tokenizer.encode_batch(list(captions))
        ids = np.full((len(captions), max_length), self.pad_id, np.int32)
        mask = np.zeros((len(captions), max_length), bool)
        cut = []
        for row, (caption, tokens) in enumerate(zip(captions, encoded, strict=True)):
            ids[row, : len(tokens.ids)] = tokens.ids
            mask[row, : len(tokens.ids)] = True
            if tokens.overflowing:
                cut.append(caption)
        if cut:
            named = ", ".join(map(repr, cut[:_SHOWN])) + (", ..." if len(cut) > _SHOWN else "")
            warnings.warn(
                f"{len(cut)} of {len(captions)} captions exceed {max_length} tokens and were cut: {named}",
                stacklevel=2,
            )
        return ids, mask
