"""A whole CLIP from a folder, as Hugging Face saves openai/clip-vit-*: pictures and captions to one space."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from lcm_jax.assess.spread import spread
from lcm_jax.evaluate.features import FeatureNet, fingerprint
from lcm_jax.models import clip_text as text
from lcm_jax.models import clip_vision as vision
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.clip_tokenizer import LENGTH, ClipTokenizer
from lcm_jax.weights.json_file import read_object
from lcm_jax.weights.tensor_files import open_tensors

CAPTIONS = 64  # a batch
_BICUBIC = 3  # Pillow's number


@dataclass(frozen=True, eq=False)
class ClipJudge:
    """Both towers, compiled; `vision` is a feature network like any other, named CLIP."""

    vision: FeatureNet  # uint8 pixels of any size -> projected vectors
    text: FeatureNet  # ids -> projected vectors
    tokenizer: ClipTokenizer

    @property
    def hash(self) -> str:
        """Of both towers and the vocabulary."""
        return fingerprint(self.vision.hash, self.text.hash, str(self.tokenizer.vocabulary))

    def of_captions(self, captions: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Projected vectors of captions, each different one computed once; long ones are cut with a warning."""
        different = sorted(set(captions))
        row = {caption: i for i, caption in enumerate(different)}
        blocks = (self.tokenizer.encode(different[i : i + CAPTIONS]) for i in range(0, len(different), CAPTIONS))
        vectors = np.concatenate([np.asarray(self.text.apply(_full(ids)))[: len(ids)] for ids in blocks])
        return vectors[[row[caption] for caption in captions]]


def open_clip(folder: str | Path) -> ClipJudge:
    """The CLIP of a folder with config.json, weights, tokenizer and preprocessor_config.json.

    Raises FileNotFoundError for what is missing, ValueError for another kind of model, for weights that do not fit
    and for preprocessing that is not CLIP's; each in one line.
    """
    folder = Path(folder)
    config = _json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise ValueError(f"{folder} holds a {config.get('model_type')!r} model, no whole CLIP with both towers")
    sees_config, reads_config = vision.clip_vision_config(config), text.clip_text_config(config)
    check_preprocessing(_json(folder / "preprocessor_config.json"), sees_config.size, folder)
    tokenizer = ClipTokenizer(folder, min(LENGTH, reads_config.positions))
    if tokenizer.vocabulary > reads_config.vocabulary:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.vocabulary} tokens, config.json {reads_config.vocabulary}: "
            "take both from one model"
        )
    sees, reads, file = vision.clip_vision(sees_config), text.clip_text(reads_config), open_tensors(folder, "model")
    of_image = from_torch(file, sees.abstract(), ignore=vision.UNUSED_KEYS)
    of_text = from_torch(file, reads.abstract(), ignore=text.UNUSED_KEYS)
    see = lambda params, pixels: sees.apply(params, vision.clip_preprocess(pixels, sees_config.size)).embeds
    read = lambda params, ids: reads.apply(params, ids).embeds
    return ClipJudge(
        vision=FeatureNet(
            name="CLIP",
            hash=_hash(sees_config, of_image),
            apply=spread(see, of_image),
            resize=f"Pillow bicubic, shorter side to {sees_config.size} px, centre crop",
        ),
        text=FeatureNet("CLIP-text", _hash(reads_config, of_text), spread(read, of_text)),
        tokenizer=tokenizer,
    )


def check_preprocessing(value: Mapping[str, Any], size: int, folder: Path) -> None:
    """Raises ValueError where a preprocessor_config.json asks for anything else than `clip_preprocess` does."""

    def side(name: str, key: str) -> Any:
        given = value.get(name, {key: 224})
        return given.get(key, given) if isinstance(given, Mapping) else given

    wanted = {
        "resample": (value.get("resample", _BICUBIC), _BICUBIC),
        "size": (side("size", "shortest_edge"), size),
        "crop_size height": (side("crop_size", "height"), size),
        "crop_size width": (side("crop_size", "width"), size),
        **{key: (value.get(key, True), True) for key in ("do_resize", "do_center_crop", "do_rescale", "do_normalize")},
        "rescale_factor": (value.get("rescale_factor", 1 / 255), 1 / 255),
        "image_mean": (value.get("image_mean", vision.MEAN), vision.MEAN),
        "image_std": (value.get("image_std", vision.STD), vision.STD),
    }
    for key, (given, ours) in wanted.items():
        numbers = not isinstance(given, Mapping | None) and np.shape(given) == np.shape(ours)
        if not numbers or not np.allclose(given, ours, rtol=1e-5, atol=0):
            said = list(ours) if isinstance(ours, tuple) else ours
            raise ValueError(f"{folder}/preprocessor_config.json has {key} {given!r}; supported is {said!r}")


def _full(ids: np.ndarray) -> np.ndarray:
    """The last row repeated to a whole batch, so that one compilation serves all."""
    return np.concatenate([ids, np.repeat(ids[-1:], CAPTIONS - len(ids), axis=0)])


def _hash(config: Any, params: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return fingerprint(repr(config), *(p for path, leaf in leaves for p in (jax.tree_util.keystr(path), leaf)))


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} holds no {path.name}: give a whole CLIP, as Hugging Face saves it")
    return read_object(path, "download it again")
