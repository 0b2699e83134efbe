"""Finds the folder of a pipeline, or of an autoencoder alone, by path or by its name on the Hugging Face hub."""

import os
import re
from pathlib import Path

from lcm_jax.weights.diffusers_folder import CONFIG, INDEX, TEXT_ENCODERS, TOKENIZERS

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def resolve(name_or_path: str | os.PathLike, variant: str | None = None) -> Path:
    """The folder of that path, or else of that name on the Hugging Face hub, downloaded on first use.

    Of the hub's files only those `describe` and `open_tensors` read are fetched: configs, tokenizers and the
    safetensors of one `variant` ("fp16"). What was fetched before serves without a network.
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
    wanted = {"repo_id": name, "allow_patterns": hub_patterns(variant)}
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


def hub_patterns(variant: str | None = None) -> list[str]:
    """Glob patterns of the files of a model that are read here, with the weights of one variant."""
    tag = f".{variant}" if variant else ""
    patterns = [INDEX, "scheduler/scheduler_config.json"]
    patterns += [f"{part}/*.{end}" for part in TOKENIZERS["sdxl"] for end in ("json", "txt")]
    stems = {part: "diffusion_pytorch_model" for part in ("", "unet/", "vae/")}  # "": an autoencoder's own
    for part, stem in (stems | {f"{part}/": "model" for part in TEXT_ENCODERS["sdxl"]}).items():
        shards = (f"{stem}{tag}-?????-of-?????.safetensors", f"{stem}-?????-of-?????{tag}.safetensors")
        names = (CONFIG, f"{stem}{tag}.safetensors", f"{stem}.safetensors.index{tag}.json", *shards)
        patterns += [f"{part}{name}" for name in dict.fromkeys(names)]
    return patterns
