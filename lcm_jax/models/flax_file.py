"""Parameters as the bytes of Flax's msgpack format, which any Flax program reads."""

import os
from pathlib import Path
from typing import Any

from flax import serialization

from lcm_jax.typing import Params


def to_bytes(params: Params) -> bytes:
    """A nested dict of arrays, dtypes kept, as flax.serialization.from_bytes reads it."""
    return serialization.to_bytes(params)


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The nested dict of numpy arrays in a msgpack file; ValueError if it is truncated or of another format."""
    try:
        tree = serialization.msgpack_restore(Path(path).read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}; give one that launch.export wrote") from None
    except Exception as error:  # msgpack's own errors share no base class
        raise ValueError(f"{path} is no complete Flax msgpack file ({error}): export the model again") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds no parameters: export the model again")
    return tree
