"""Adapters (LoRA) as one file in a naming of the community, with a card."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lcm_jax.export.flax_folder import SLACK
from lcm_jax.export.network_file import size
from lcm_jax.export.new_folder import CARD, check_free, check_space, new_folder
from lcm_jax.export.torch_card import lora_card
from lcm_jax.typing import Params
from lcm_jax.weights import folder, lora_file

DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"  # what load_lora_weights looks for in a folder


def write(
    out: str | os.PathLike,
    description: Mapping[str, Any],
    lora: Params,
    alpha: lora_file.Alpha,
    unet: Params,
    naming: str = "peft",
    dtype: str = "float32",
    overwrite: bool = False,
    base: str = "BASE",
) -> Path:
    """Writes a folder with a U-Net's adapters in a naming of weights.lora_file, and a card.

    `lora` and `alpha` are models.lora's, `unet` the abstract tree of the network they adapt, `base` the name of its
    model. peft's file has the name that diffusers looks for, others that of the folder. Raises ValueError as
    lora_file.write does and for factors beyond `dtype`, FileExistsError and OSError as export.flax_folder does.
    """
    out = Path(os.path.abspath(out))
    folder.cast({}, dtype)  # refuses an unknown one
    check_free(out, overwrite)
    check_space(out.parent, size(lora, dtype) + SLACK)
    file = DIFFUSERS_NAME if naming == "peft" else f"{out.name}.safetensors"
    downs = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(lora) if path[-1].key == "down"]
    ranks = sorted({leaf.shape[-1] for leaf in downs})
    alphas = sorted(set(alpha.values())) if isinstance(alpha, Mapping) else [alpha]
    told = {
        "weights": f"{dtype}, {file}, names as {'diffusers and peft' if naming == 'peft' else 'kohya'} have them",
        "base": base,
        "adapters": f"{len(downs)} modules, {sum(leaf.size for leaf in jax.tree.leaves(lora)) / 1e6:.2f} M numbers",
        "rank": ", ".join(map(str, ranks)),
        "alpha": ", ".join(f"{value:g}" for value in alphas),
    }
    notes = {"modelspec.title": out.name}
    with new_folder(out, overwrite) as scratch:
        small = folder.cast(lora, dtype)
        lora_file.write(scratch / file, {"unet": (small, alpha)}, {"unet": unet}, naming, notes)
        folder.write_text(scratch / CARD, lora_card(out, description, file, told))
    return out
