"""LoRA files in the namings of the community: safetensors against trees of {"down", "up"} and their alphas.

    peft       unet.mid_block.resnets.0.conv1.lora_A.weight / .lora_B.weight (and what diffusers wrote before)
    kohya      lora_unet_mid_block_resnets_0_conv1.lora_down.weight / .lora_up.weight / .alpha
    kohya_ldm  lora_unet_middle_block_0_in_layers_2..., the same with the block names of the first Stable Diffusion code

Trees are those of models.lora: factors in the kernel's layout, alphas by "path/of/module". Networks are called as in
a diffusers folder: unet, text_encoder, text_encoder_2. Underscored names are not taken apart, which cannot be done
without guessing, but looked up among the names of the network's modules.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lcm_jax.weights.bijection import flatten, some, unflatten
from lcm_jax.weights.ldm_unet import original_name
from lcm_jax.weights.safetensors_file import SafetensorsFile
from lcm_jax.weights.safetensors_stream import write_stream

Module = tuple[str, ...]  # path of a module in the tree of its network
Tree = Mapping[str, Any]
Alpha = int | float | Mapping[str, int | float]

NAMINGS = ("peft", "kohya", "kohya_ldm")
_PREFIXES = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}  # kohya's, ours
_KOHYA = re.compile(r"lora_(?P<net>unet|te|te1|te2)_(?P<name>[^.]+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")
_COMFY = re.compile(r"diffusion_model\.(?P<name>.+)\.(?P<part>lora_down\.weight|lora_up\.weight|alpha)")  # of kohya_ldm
_DOTTED = re.compile(
    r"(?!lora_)(?:(?P<net>unet|text_encoder|text_encoder_2)\.)?(?:base_model\.model\.)?(?P<name>.+?)"
    r"(?:(?:\.lora_(?P<ab>[AB])(?:\.default)?|[._]lora[._](?P<du>down|up)|\.lora_linear_layer\.(?P<te>down|up))\.weight|\.alpha)"
)
_PARTS = {"A": "down", "B": "up", "lora_down.weight": "down", "lora_up.weight": "up", "alpha": "alpha"}
_REFUSED = {
    "LoHa": r"\.hada_",
    "LoKr": r"\.lokr_",
    "DoRA": r"\.dora_scale|\.lora_magnitude_vector",
    "LoCon with a core tensor": r"\.lora_mid\.",
    "LoRA with trained biases": r"\.(lora_B|lora_up|lora\.up)\.bias$",
    "LoRA of embeddings": r"\.lora_embedding_",
    "OFT": r"\.oft_",
    "(IA)3": r"\.on_input$",
    "whole differences": r"\.diff(_b)?$",
}
_LDM = re.compile("input_blocks_|middle_block_|output_blocks_|time_embed_|label_emb_|out_2$")
_ADAPTER_METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's settings, as JSON


class Adapters(NamedTuple):
    """One network's part of a file: what models.lora.merge(params, *adapters, strength) takes."""

    lora: Tree
    alpha: Mapping[str, float]


def detect(keys: Iterable[str]) -> str:
    """The naming of a file with these keys: one of NAMINGS.

    Raises ValueError for another kind of adapter (named), keys of no LoRA, and a mixture of namings.
    """
    keys = sorted(keys)
    for kind, pattern in _REFUSED.items():
        if found := [key for key in keys if re.search(pattern, key)]:
            raise ValueError(f"{len(found)} of {len(keys)} keys are {kind}, which is not supported: {some(found)}")
    kohya = [match for key in keys if (match := _kohya(key))]
    dotted = [key for key in keys if not _kohya(key) and _DOTTED.fullmatch(key)]
    if other := [key for key in keys if not _kohya(key) and not _DOTTED.fullmatch(key)]:
        raise ValueError(f"{len(other)} of {len(keys)} keys are no LoRA's in any naming of {NAMINGS}: {some(other)}")
    if not keys:
        raise ValueError("no keys: the file is empty")
    if kohya and dotted:
        raise ValueError(f"kohya's and peft's names in one file: {kohya[0].string}, {dotted[0]}; split it")
    if not kohya:
        return "peft"
    ldm = any(match["net"] == "unet" and _LDM.match(match["name"]) for match in kohya)
    return "kohya_ldm" if ldm else "kohya"


def _kohya(key: str) -> re.Match[str] | None:
    """A key in kohya's naming, or in ComfyUI's, which has the points of the first code's names."""
    if comfy := _COMFY.fullmatch(key):
        key = f"lora_unet_{comfy['name'].replace('.', '_')}.{comfy['part']}"
    return _KOHYA.fullmatch(key)


def module_names(tree: Tree, naming: str) -> dict[Module, str]:
    """{path of a module: its name in a file} for all dense maps and convolutions of a network (arrays or abstract).

    The name is what stands between the network's prefix and the part (".lora_A.weight").
    Raises ValueError for an unknown naming.
    """
    if naming not in NAMINGS:
        raise ValueError(f"unknown naming {naming!r} of LoRA files; choose one of {', '.join(NAMINGS)}")
    name: Callable[[Module], str] = {"peft": ".".join, "kohya": "_".join, "kohya_ldm": lambda p: _ldm(p, tree)}[naming]
    return {path: name(path) for path in _kernels(tree)}


def read(path: str | os.PathLike, trees: Mapping[str, Tree]) -> dict[str, Adapters]:
    """The adapters in a file for the networks of `trees` ({"unet": abstract tree, ...}), in the file's own types.

    The naming is found out. A 1x1 convolution's factors may lack their last two dims, a linear map's may have them.
    alpha is that of the file's keys, else of the settings peft wrote into the metadata or an adapter_config.json
    beside it, else the rank.
    Raises ValueError for what `detect` refuses, for adapters of a network that `trees` lacks, and, with their number
    and names, for modules the network lacks, has twice or has in another shape.
    """
    file = SafetensorsFile(file_of(path))
    try:
        naming = detect(file)
        found = _sorted_out(file, naming)
        if strange := [f"{net} ({len(found[net])} modules)" for net in found if net not in trees]:
            raise ValueError(f"it adapts {', '.join(strange)} too, which is not here: take the model it was made for")
        settings = _settings(file)
        return {
            net: _adapters(file, parts, trees[net], naming, settings.get(net, {}))
            for net, parts in found.items()
        }
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def file_of(path: str | os.PathLike) -> Path:
    """The file itself, or the one that a folder holds; FileNotFoundError for a folder of none or several."""
    path = Path(path)
    if not path.is_dir():
        return path
    held = sorted(path.glob("*.safetensors"))
    if len(held) != 1:
        names = ", ".join(each.name for each in held) or "none"
        raise FileNotFoundError(f"{path} is a folder of {len(held)} LoRA files ({names}): give the file")
    return held[0]


def write(
    path: str | os.PathLike,
    adapters: Mapping[str, tuple[Tree, Alpha]],
    trees: Mapping[str, Tree],
    naming: str = "peft",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes {"unet": (lora, alpha), ...} in a naming, so that `read` gives the same arrays bit for bit.

    kohya's alphas are tensors, in the factors' type where that holds them exactly and float32 elsewhere; peft's are
    settings in the metadata, where diffusers looks for them. `metadata` is added to what the naming has of its own.
    Raises ValueError for an unknown naming, a module without an alpha or that the network lacks, and a name that two
    modules would share.
    """
    tensors: dict[str, np.ndarray] = {}
    notes: dict[str, Any] = {}
    for net, (lora, alpha) in adapters.items():
        if net not in trees:
            raise ValueError(f"no tree of {net}, by whose modules its adapters are named: give one")
        pairs, names = _pairs(lora), module_names(trees[net], naming)
        if absent := ["/".join(module) for module in pairs if module not in names]:
            raise ValueError(f"{net} lacks {len(absent)} of {len(pairs)} adapted modules: {some(absent)}")
        of = alpha if isinstance(alpha, Mapping) else {"/".join(module): alpha for module in pairs}
        if lacking := [path for path in map("/".join, pairs) if path not in of]:
            raise ValueError(f"no alpha for {some(lacking)}: give one number for all modules, or one for each")
        alphas = {module: float(of["/".join(module)]) for module in pairs}
        ranks = {module: pair["down"].shape[-1] for module, pair in pairs.items()}
        for module, pair in pairs.items():
            down, up = _file_layout(pair["down"]), _file_layout(pair["up"])
            if naming == "peft":
                name = f"{net}.{names[module]}"
                new = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
            else:
                name = f"lora_{_kohya_prefix(net, trees)}_{names[module]}"
                new = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
                new[f"{name}.alpha"] = _scalar(alphas[module], down.dtype)
            if taken := tensors.keys() & new.keys():
                raise ValueError(f"two modules of {net} share the name {min(taken)!r}: choose another naming")
            tensors |= new
        notes |= _notes(net, names, ranks, alphas, naming)
    if naming == "peft":
        notes = {"format": "pt", _ADAPTER_METADATA: json.dumps(notes, sort_keys=True)}
    write_stream(path, tensors, tensors.__getitem__, notes | dict(metadata or {}))


def _sorted_out(keys: Iterable[str], naming: str) -> dict[str, dict[str, dict[str, str]]]:
    """{network: {name of a module: {"down": key, "up": key, "alpha": key}}}."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for key in keys:
        if naming == "peft":
            match = _DOTTED.fullmatch(key)
            net = match["net"] or "unet"  # the oldest files adapt the U-Net alone and do not name it
            name = match["name"].replace(".processor.", ".")
            part = match["ab"] or match["du"] or match["te"] or "alpha"
        else:
            match = _kohya(key)
            net, name, part = _PREFIXES[match["net"]], match["name"], match["part"]
        parts = found.setdefault(net, {}).setdefault(name, {})
        part = _PARTS.get(part, part)
        if part in parts:
            raise ValueError(f"{parts[part]} and {key} are the same factor: remove one")
        parts[part] = key
    return found


def _adapters(
    file: SafetensorsFile, found: Mapping[str, Mapping[str, str]], tree: Tree, naming: str, settings: Mapping[str, Any]
) -> Adapters:
    kernels, owners = _kernels(tree), _owners(tree, naming)
    lora: dict[Module, np.ndarray] = {}
    alphas: dict[str, float] = {}
    wrong: dict[str, list[str]] = {"not in the network": [], "of another shape": [], "without their other half": []}
    for name, parts in found.items():
        modules = next((owners[n] for n in _spellings(name, naming) if n in owners), ())
        if len(modules) > 1:
            both = ", ".join("/".join(module) for module in modules)
            raise ValueError(f"{name} may mean each of {both}: rename it in peft's naming, which is unambiguous")
        if not modules:
            wrong["not in the network"].append(name)
        elif not parts.keys() >= {"down", "up"}:
            wrong["without their other half"].append(", ".join(parts.values()))
        else:
            (module,) = modules
            pair = {part: _our_layout(file[parts[part]], part, kernels[module]) for part in ("down", "up")}
            down, up = (pair[part].shape for part in ("down", "up"))
            *into, out = kernels[module].shape
            if down[:-1] != tuple(into) or up != (*[1] * (len(into) - 1), down[-1], out) or down[-1] < 1:
                here = " and ".join(str(file.shape(parts[part])) for part in ("down", "up"))
                wrong["of another shape"].append(f"{name} ({here}, network has a kernel {(*into, out)})")
            elif (*module, "down") in lora:
                raise ValueError(f"{'/'.join(module)} is adapted twice, once as {name}: remove one")
            else:
                lora |= {(*module, part): factor for part, factor in pair.items()}
                alphas["/".join(module)] = _alpha(file, parts, name, down[-1], settings)
    if any(wrong.values()):
        bad = sum(map(len, wrong.values()))
        what = "; ".join(f"{len(names)} {fault}: {some(names)}" for fault, names in wrong.items() if names)
        raise ValueError(f"{bad} of {len(found)} modules do not fit, take the network it was made for. {what}")
    return Adapters(unflatten(lora), alphas)


def _owners(tree: Tree, naming: str) -> dict[str, list[Module]]:
    """The modules that a name in a file may mean; kohya's two spellings of blocks may stand in one file."""
    owners: dict[str, list[Module]] = {}
    for spelling in ("peft",) if naming == "peft" else ("kohya", "kohya_ldm"):
        for module, name in module_names(tree, spelling).items():
            if module not in owners.setdefault(name, []):
                owners[name].append(module)
    return owners


def _spellings(name: str, naming: str) -> list[str]:
    """The names a module may have in today's network if it is called so in a file of any age."""
    names = [name]
    if naming == "peft":
        names.append(re.sub(r"\.to_out$", ".to_out.0", name))  # attention processors
        names.append(re.sub(r"\.self_attn\.to_(q|k|v|out)$", r".self_attn.\1_proj", name))  # the first text adapters
        names.append(f"text_model.{name}")  # transformers 5 leaves it out
    return names


def _alpha(file: SafetensorsFile, parts: Mapping[str, str], name: str, rank: int, settings: Mapping[str, Any]) -> float:
    if "alpha" in parts:
        value = np.asarray(file[parts["alpha"]])
        if value.size != 1:
            raise ValueError(f"{parts['alpha']} has shape {value.shape}: one number is wanted")
        return float(value.reshape(()))
    patterns = settings.get("alpha_pattern") or {}
    special = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", name))
    alpha = float(next(special, settings.get("lora_alpha", rank)))
    # peft's rank-stabilised scale is alpha / sqrt(rank) (arXiv 2312.03732); ours is alpha / rank.
    return alpha * math.sqrt(rank) if settings.get("use_rslora") else alpha


def _settings(file: SafetensorsFile) -> dict[str, dict[str, Any]]:
    """peft's settings of each network, from the metadata or the file that peft writes beside its own."""
    beside = file.path.with_name("adapter_config.json")
    settings: dict[str, dict[str, Any]] = {}
    try:
        if text := file.metadata.get(_ADAPTER_METADATA):
            for key, value in json.loads(text).items():
                net, dot, name = key.partition(".")
                net, name = (net, name) if dot else ("unet", key)  # a network that saved its adapters by itself
                settings.setdefault(net, {})[name] = value
        elif file.path.stem == "adapter_model" and beside.exists():
            settings["unet"] = dict(json.loads(beside.read_text(encoding="utf-8")))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"its settings (metadata or {beside.name}) are no JSON object ({error})") from None
    return settings


def _notes(
    net: str, names: Mapping[Module, str], ranks: Mapping[Module, int], alphas: Mapping[Module, float], naming: str
) -> dict[str, Any]:
    """The metadata that a naming has for one network."""
    rank, alpha = (_most(list(values.values())) for values in (ranks, alphas))
    if naming != "peft":
        if net != "unet":
            return {}
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    # transformers 5 calls text modules without text_model; peft matches the end of a name, so the short one fits both.
    short = {module: name.removeprefix("text_model.") for module, name in names.items()}
    settings = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {short[module]: r for module, r in ranks.items() if r != rank},
        "alpha_pattern": {short[module]: a for module, a in alphas.items() if a != alpha},
        "target_modules": [short[module] for module in ranks],
    }
    return {f"{net}.{name}": value for name, value in settings.items()}


def _kernels(tree: Tree) -> dict[Module, Any]:
    """{path of a module: kernel} of all dense maps and convolutions."""
    return {path[:-1]: leaf for path, leaf in flatten(tree).items() if path[-1] == "kernel" and len(leaf.shape) >= 2}


def _pairs(lora: Tree) -> dict[Module, dict[str, np.ndarray]]:
    pairs: dict[Module, dict[str, np.ndarray]] = {}
    for (*module, part), leaf in sorted(flatten(lora).items()):
        pairs.setdefault(tuple(module), {})[part] = np.asarray(leaf)
    if odd := ["/".join(module) for module, pair in pairs.items() if pair.keys() != {"down", "up"}]:
        raise ValueError(f"a module of adapters holds 'down' and 'up' and nothing else, unlike {some(odd)}")
    return pairs


def _ldm(module: Module, tree: Tree) -> str:
    """The underscored name of a module in the first Stable Diffusion code, which counts blocks through the levels."""
    if "down_blocks" not in tree or "up_blocks" not in tree:
        return "_".join(module)  # a text encoder: its names are the same in both spellings
    levels = [tree["down_blocks"][str(i)] for i in range(len(tree["down_blocks"]))]
    attention = tuple(bool(level.get("attentions")) for level in levels)
    name = original_name(".".join((*module, "weight")), len(levels[0]["resnets"]), attention)
    return name.removesuffix(".weight").replace(".", "_")


def _kohya_prefix(net: str, trees: Mapping[str, Tree]) -> str:
    """te for a model with one text encoder, te1 and te2 for one with two."""
    if net == "text_encoder":
        return "te1" if "text_encoder_2" in trees else "te"
    return {"unet": "unet", "text_encoder_2": "te2"}[net]


def _our_layout(value: np.ndarray, part: str, kernel: Any) -> np.ndarray:
    """[o, i, *space] -> [*space, i, o], with as many dims as the kernel where the others are 1."""
    rank = len(kernel.shape)
    if value.ndim > rank == 2 and set(value.shape[2:]) == {1}:
        value = value.reshape(value.shape[:2])
    if value.ndim == 2 < rank and (part == "up" or set(kernel.shape[:-2]) == {1}):
        value = value.reshape(*value.shape, *[1] * (rank - 2))
    return np.ascontiguousarray(np.moveaxis(value, (1, 0), (-2, -1)) if value.ndim >= 2 else value)


def _file_layout(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(value, (-2, -1), (1, 0)))


def _scalar(value: float, dtype: np.dtype) -> np.ndarray:
    small = np.asarray(value, dtype)
    return small if float(small) == value else np.asarray(value, np.float32)


def _most(values: Sequence[Any]) -> Any:
    """The commonest value."""
    return max(dict.fromkeys(values), key=values.count)
