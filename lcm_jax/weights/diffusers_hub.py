"""Finds the folder of a pipeline, or of an autoencoder alone, by path or by its name on the Hugging Face hub."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from lcm_jax.weights.diffusers_folder import CONFIG, INDEX, TEXT_ENCODERS, TOKENIZERS
from lcm_jax.weights.tensor_files import PICKLED_STEM

# "": an autoencoder's own folder.
STEMS = dict.fromkeys(("", "unet", "vae"), "diffusion_pytorch_model") | dict.fromkeys(TEXT_ENCODERS["sdxl"], "model")
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve(name_or_path: str | os.PathLike, variant: str | None = None) -> Path:
    """The folder of that path, or else of that name on the Hugging Face hub, downloaded on first use.

    Of the hub's files only those `describe` and `open_tensors` read are fetched: configs, tokenizers and the
    safetensors of one `variant` ("fp16"), or its older .bin files for components that have none. What was fetched
    before serves without a network.
    Raises FileNotFoundError, saying how to give a folder instead.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.is_file():
        raise FileNotFoundError(f"{path} is a file: give the folder that holds {INDEX}")
    name = str(name_or_path)
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"no folder {path}: give one that save_pretrained wrote, or a hub name as owner/model")
    try:
        import huggingface_hub as hub
    except ImportError:
        raise FileNotFoundError(
            f"no folder {path}, and no hub without huggingface_hub: pip install it, or give a downloaded folder"
        ) from None

    def fetched(patterns: list[str]) -> Path:
        wanted = {"repo_id": name, "allow_patterns": patterns}
        try:
            return Path(hub.snapshot_download(**wanted))
        except Exception as online:  # the hub's errors and its transport's share no base class
            try:
                return Path(hub.snapshot_download(**wanted, local_files_only=True))
            except Exception:
                why = (str(online).strip().splitlines() or [type(online).__name__])[0]
                raise FileNotFoundError(
                    f"no folder {path}, and {name!r} was not to be had from the hub ({why}): give a downloaded folder"
                ) from online

    folder = fetched(hub_patterns(variant))
    held = [part for part in STEMS if (folder / part / CONFIG).is_file()]
    if old := [part for part in held if not any((folder / part).glob("*.safetensors"))]:
        return fetched(pickled_patterns(old, variant))
    return folder


def hub_patterns(variant: str | None = None) -> list[str]:
    """Glob patterns of the files of a model that are read here, with the safetensors of one variant."""
    patterns = [INDEX, "scheduler/scheduler_config.json", *(_inside(part, CONFIG) for part in STEMS)]
    patterns += [f"{part}/*.{end}" for part in TOKENIZERS["sdxl"] for end in ("json", "txt")]
    return patterns + [name for part, stem in STEMS.items() for name in _weights(part, stem, "safetensors", variant)]


def pickled_patterns(parts: Sequence[str], variant: str | None = None) -> list[str]:
    """Glob patterns of the .bin files of components that have no safetensors."""
    stems = {part: PICKLED_STEM.get(STEMS[part], STEMS[part]) for part in parts}
    return [name for part, stem in stems.items() for name in _weights(part, stem, "bin", variant)]


def _weights(part: str, stem: str, end: str, variant: str | None) -> list[str]:
    tag = f".{variant}" if variant else ""
    shards = (f"{stem}{tag}-?????-of-?????.{end}", f"{stem}-?????-of-?????{tag}.{end}")
    names = (f"{stem}{tag}.{end}", f"{stem}.{end}.index{tag}.json", *shards)
    return [_inside(part, name) for name in dict.fromkeys(names)]


def _inside(part: str, name: str) -> str:
    return f"{part}/{name}" if part else name
