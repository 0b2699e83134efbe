"""Parameters as the bytes of Flax's msgpack format, which any Flax program reads."""

from flax import serialization

from lcm_jax.typing import Params


def to_bytes(params: Params) -> bytes:
    """A nested dict of arrays, dtypes kept, as flax.serialization.from_bytes reads it."""
    return serialization.to_bytes(params)
