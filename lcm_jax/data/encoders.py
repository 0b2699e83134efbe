"""What turns pictures and captions into the arrays that are stored of them, a batch at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

STATES = ("context", "pooled")  # what a text encoder may give
CERTAIN = -30.0  # logvar of latents that are no encoder's guess


@dataclass(frozen=True)
class Encoders:
    """The callables that turn a batch into arrays, always of `batch_size` rows so that jit compiles once.

    `images`: float32 [b, H, W, 3] in [-1, 1] -> moments [b, h, w, 2c], or in its place `draw`: (keys, what
    `captions` gives) -> unscaled latents [b, h, w, c] of pictures that there are not; `text`: captions -> context
    [b, l, d], or {"context": [b, l, d], "pooled": [b, p]}; `tokens`: captions -> ids [b, l] or [b, towers, l]. `text`
    or `tokens` may be None, not both.
    """

    images: Callable | None
    text: Callable | None
    tokens: Callable | None
    batch_size: int
    moment_dtype: str
    draw: Callable | None = None

    def captions(self, captions: list[str]) -> dict[str, np.ndarray]:
        """The arrays stored for at most `batch_size` captions."""
        padded = captions + [captions[-1]] * (self.batch_size - len(captions))
        arrays = {}
        if self.text is not None:
            states = self.text(padded)
            states = states if isinstance(states, Mapping) else {"context": states}
            if "context" not in states or states.keys() - set(STATES):
                raise ValueError(f"the text encoder gives {', '.join(states)}; it must give context, and may pooled")
            with np.errstate(over="ignore"):
                arrays |= {
                    name: np.asarray(states[name]).astype(np.float16)[: len(captions)]
                    for name in STATES
                    if name in states
                }
        if self.tokens is not None:
            arrays["tokens"] = np.asarray(self.tokens(padded)).astype(np.int32)[: len(captions)]
        return arrays

    def pixels(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Posterior mean and logvar of at most `batch_size` images, float32 [b, H, W, 3] in [-1, 1]."""
        missing = self.batch_size - len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], missing, 0)]) if missing else pixels
        moments = np.asarray(self.images(padded), np.float32)[: len(pixels)]
        return self._stored(*np.split(moments, 2, axis=-1))

    def drawn(self, keys: list[str], told: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Mean and logvar of the pictures drawn of at most `batch_size` captions, from what is stored of them."""
        latents = np.asarray(self.draw(keys, told), np.float32)
        return self._stored(latents, np.full_like(latents, CERTAIN))

    def _stored(self, mean: np.ndarray, logvar: np.ndarray) -> dict[str, np.ndarray]:
        with np.errstate(over="ignore"):  # what overflows is reported with its key
            return {"mean": mean.astype(self.moment_dtype), "logvar": logvar.astype(self.moment_dtype)}
