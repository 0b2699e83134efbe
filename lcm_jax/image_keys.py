"""The random key of every picture: decided by seed, prompt and number, whatever else is drawn."""

import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PRNGKeyArray

Keys = Key[Array, " b"]  # one an image: a picture depends on its own key, not on its neighbours


def firsts(prompts: Sequence[str], n: int) -> list[int]:
    """The number of the first of n images of each prompt: one named again goes on where it stopped."""
    seen: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        found.append(seen[prompt] * n)
        seen[prompt] += 1
    return found


def root_key(seed: int) -> PRNGKeyArray:
    """The key of a seed of up to 64 bits; ValueError beyond."""
    seed = int(seed)  # of any of numpy's types
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed is {seed}: give a whole number of at most 64 bits")
    low, high = seed % 2**32, seed // 2**32 % 2**32
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key  # jax would drop these bits


def image_keys(prompts: Sequence[str], n: int, seed: int, first: Sequence[int] | None = None) -> Keys:
    """A key for each of n images of each prompt, numbered from `first` on: decided by seed, prompt and number alone."""
    root = root_key(seed)
    prompt = np.repeat(np.array([zlib.crc32(p.encode()) for p in prompts], np.uint32), n)
    start = np.array(firsts(prompts, n) if first is None else first, np.uint32)
    number = (start[:, None] + np.arange(n, dtype=np.uint32)).ravel()
    return jax.vmap(lambda p, i: jax.random.fold_in(jax.random.fold_in(root, p), i))(prompt, number)
