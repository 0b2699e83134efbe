"""A trained model as a self-describing folder: safetensors and Flax msgpack weights, model.json, a model card."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lcm_jax.export.model_card import model_card
from lcm_jax.export.network_file import Trees, shapes_of, size, write_flax
from lcm_jax.export.new_folder import CARD, check_free, check_space, new_folder
from lcm_jax.typing import Params
from lcm_jax.weights import folder

SLACK = 2**20  # bytes the small files may take


def write(
    out: str | os.PathLike,
    description: Mapping[str, Any],
    networks: Trees,
    to_bytes: Callable[[Params], bytes] | None,
    dtype: str = "float32",
    overwrite: bool = False,
    tokenizers: Sequence[Path] = (),
) -> Path:
    """Writes every network as NAME.safetensors and, by `to_bytes`, NAME.msgpack in `dtype`; model.json, README.md.

    Networks are read one at a time; the folders of the tokenizers that belong to them are copied. The folder
    appears whole or not at all. Raises FileExistsError if it is there already (`overwrite` replaces an earlier
    export, nothing else), OSError if the disk cannot hold it, ValueError for weights beyond `dtype`.
    """
    out = Path(os.path.abspath(out))
    folder.cast({}, dtype)  # refuses an unknown one
    check_free(out, overwrite)
    shapes = shapes_of(networks)
    check_space(out.parent, (2 if to_bytes else 1) * sum(size(tree, dtype) for tree in shapes.values()) + SLACK)
    with new_folder(out, overwrite) as scratch:
        for name in networks:
            tree = networks[name]
            if to_bytes:
                folder.write_bytes(scratch / f"{name}.msgpack", to_bytes(folder.cast(tree, dtype)))
            write_flax(scratch / f"{name}.safetensors", tree, dtype, {"format": "lcm_jax", "network": name})
        for tokenizer in tokenizers:
            shutil.copytree(tokenizer, scratch / tokenizer.name)
        folder.write_text(scratch / CARD, model_card(out, description, shapes, dtype))
        folder.write(scratch, description, {})  # model.json last
    return out
