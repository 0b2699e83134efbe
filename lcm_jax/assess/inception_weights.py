"""FID's Inception from whichever file holds it, and as a folder that says where it came from."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import jax

from lcm_jax.evaluate.features import fingerprint
from lcm_jax.models.inception import UNUSED_KEYS, InceptionConfig, inception
from lcm_jax.typing import Params
from lcm_jax.weights import folder
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.fetch import INCEPTION, fetch
from lcm_jax.weights.inception_torchscript import from_torchscript
from lcm_jax.weights.safetensors_file import read_tree
from lcm_jax.weights.torch_pickle import read_torch
from lcm_jax.weights.torchscript import is_torchscript, read_torchscript

KIND, NAME = "inception-2015-12-05", "inception"


def open_inception(source: str | os.PathLike | None = None) -> tuple[InceptionConfig, Params]:
    """Sizes and parameters (numpy) from a TorchScript file, a .pth of the PyTorch ports or a folder of `convert`.

    Without a source, the published TorchScript file is fetched. The classifier comes along where the file has one.
    Raises FileNotFoundError for no such file, ValueError for one that is damaged or of another network.
    """
    if source is None:
        (source,) = fetch(INCEPTION).iterdir()
    source = Path(source)
    if source.is_dir():
        return _open_folder(source)
    if not source.is_file():
        raise FileNotFoundError(f"no file {source}: give FID's Inception as TorchScript, .pth or converted folder")
    if is_torchscript(source):
        tensors = from_torchscript(read_torchscript(source))
    else:
        tensors = read_torch(source)
        if not isinstance(tensors, dict):
            raise ValueError(f"{source} holds no dict of tensors: give FID's Inception")
    weight = tensors.get("fc.weight")
    config = InceptionConfig(classes=None if weight is None else len(weight))
    try:
        return config, from_torch(tensors, inception(config).abstract(), ignore=UNUSED_KEYS)
    except ValueError as error:
        raise ValueError(f"{source} is not FID's Inception: {error}") from error


def convert(source: str | os.PathLike | None, out: str | os.PathLike) -> Path:
    """Writes the folder: inception.safetensors beside a model.json with sizes and hashes of source and weights.

    Raises FileExistsError where `out` holds anything else than an earlier conversion.
    """
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file: choose another --out")
    ours = {folder.DESCRIPTION, f"{NAME}.safetensors"}
    if out.is_dir() and (others := sorted(p.name for p in out.iterdir() if p.name not in ours)):
        raise FileExistsError(f"{out} holds other files, first {others[0]}: choose another --out")
    if source is None:
        (source,) = fetch(INCEPTION).iterdir()
    config, params = open_inception(source)
    description: dict[str, Any] = {
        "kind": KIND,
        "config": dataclasses.asdict(config),
        "hash": hash_of(config, params),
        "source": {"file": Path(source).name},
    }
    if Path(source).is_file():
        with Path(source).open("rb") as file:
            description["source"]["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return folder.write(out, description, {NAME: params})


def hash_of(config: InceptionConfig, params: Params) -> str:
    """Sixteen hex digits of the sizes and every weight that features depend on, whichever file they came from."""
    trunk = {name: branch for name, branch in params.items() if name != "fc"}
    leaves = jax.tree_util.tree_leaves_with_path(trunk)
    parts = [part for path, leaf in leaves for part in (jax.tree_util.keystr(path), leaf)]
    return fingerprint(json.dumps({"size": config.size, "narrow": config.narrow}), *parts)


def _open_folder(path: Path) -> tuple[InceptionConfig, Params]:
    said = folder.describe(path)
    if said.get("kind") != KIND:
        raise ValueError(f"{path} holds a {said.get('kind')!r} model, no {KIND}: give the folder of a conversion")
    try:
        config = InceptionConfig(**said["config"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path / folder.DESCRIPTION} lacks or misnames a size ({error}): convert again") from None
    params = read_tree(path / f"{NAME}.safetensors")
    if hash_of(config, params) != said.get("hash"):
        raise ValueError(f"{path / NAME}.safetensors is not what {folder.DESCRIPTION} describes: convert again")
    return config, params
