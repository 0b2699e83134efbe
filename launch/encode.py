"""Encodes captioned pictures as latents and caption states, or lists what is wrong with them.

    python -m launch.encode --reader twemoji --model emoji-teacher --out data/emoji
    python -m launch.encode --folder PICTURES --model emoji-teacher --out data/mine --check
    python -m launch.encode --reader webdataset --folder SHARDS --model MODEL --out data/mine \\
        --crop random --flip 0.5 --size_ids --broken skip
    python -m launch.encode --reader parquet --folder FILES --options caption=prompt --model MODEL --out data/mine
    python -m launch.encode --reader tfds --options name=NAME --options data_dir=DIR --model MODEL --out data/mine

Classes for networks that are told labels, not captions: --options subfolders=true (ImageNet's folders), a `label` in
metadata, .cls of shards, class columns and features, --options label=category of twemoji.

Interrupted, it goes on where it stopped. --check changes nothing and exits with 1 if there are problems.

Started as several processes, as launch.train is, each encodes a share of the shards into --out, on storage that all
share; the bytes are the same for any number of them, and any number goes on where another was interrupted:

    python -m launch.local_cluster --processes 2 -- python -m launch.encode --folder PICTURES --out data/mine
"""

import sys
from typing import Any

from absl import flags

from launch import entry, opening, several

READER = flags.DEFINE_string(
    "reader",
    None,
    "Finds the pictures: image_folder (meant by --folder), webdataset, parquet, tfds, cifar10, noto or twemoji.",
)
FOLDER = flags.DEFINE_string(
    "folder", None, "Pictures captioned by metadata.jsonl, metadata.csv or a .txt each; or tar shards, or tables."
)
OPTIONS = flags.DEFINE_multi_string("options", [], "KEY=VALUE for the reader, such as tag=flag; repeatable.")
MODEL = flags.DEFINE_string("model", "emoji-teacher", "Shipped or exported model whose encoders are used.")
OUT = flags.DEFINE_string("out", None, "Folder of the latent data set.")
CHECK = flags.DEFINE_bool("check", False, "List the problems of the pictures, and of --out if it is there.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures a call.", lower_bound=1)
SHARD_SIZE = flags.DEFINE_integer("shard_size", 1024, "Pictures a shard.", lower_bound=1)
SIZE = flags.DEFINE_integer("size", None, "Pixels a side; the model's own by default.", lower_bound=1)
TOKENS = flags.DEFINE_bool("tokens", False, "Store token ids beside the captions' states.")
SHORTENED = flags.DEFINE_integer(
    "shortened", 0, "Store this many shorter captions of each training picture instead of its own.", lower_bound=0
)
TEXT = flags.DEFINE_enum(
    "text", "states", ["states", "none"], "What is stored of captions: the encoder's states, or none but token ids."
)
CROP = flags.DEFINE_enum("crop", "center", ["center", "random"], "Where pictures are cropped; random by their keys.")
FLIP = flags.DEFINE_float(
    "flip", 0.0, "Share of the pictures that are mirrored, chosen by their keys.", lower_bound=0.0, upper_bound=1.0
)
SEED = flags.DEFINE_integer("seed", 0, "Another seed, other crops and mirrors.")
SIZE_IDS = flags.DEFINE_bool("size_ids", False, "Store each picture's size and crop, which SDXL's networks read.")
BROKEN = flags.DEFINE_enum(
    "broken", "stop", ["stop", "skip"], "Broken or uncaptioned pictures, damaged files: stop, or skip and list in OUT."
)
THREADS = flags.DEFINE_integer("threads", 4, "Pictures decoded at a time.", lower_bound=1)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that was made otherwise.")


def main() -> None:
    options = entry.options(OPTIONS.value)
    if FOLDER.value is not None:
        options["folder"] = FOLDER.value
    reader = READER.value or ("image_folder" if FOLDER.value else None)
    if reader is None:
        entry.stop("give --reader NAME, or --folder PICTURES")
    if OUT.value is None and not CHECK.value:
        entry.stop("give --out, the folder of the latent data set")
    if CHECK.value:
        check(reader, options)
    entry.folder(OUT)
    with several.joined():
        encode(reader, options)


def check(reader: str, options: dict[str, Any]) -> None:
    """Leaves with 1 if there are problems."""
    from lcm_jax import encoding

    problems = encoding.check(MODEL.value, reader, options, OUT.value, size=SIZE.value, **opening.how())
    print(encoding.report(problems))
    sys.exit(1 if problems else 0)


def encode(reader: str, options: dict[str, Any]) -> None:
    """Encodes, and says what was made; of several processes the first says it."""
    import jax

    from lcm_jax import encoding

    made = encoding.encode(
        MODEL.value,
        reader,
        options,
        OUT.value,
        BATCH_SIZE.value,
        SHARD_SIZE.value,
        TOKENS.value or TEXT.value == "none",
        OVERWRITE.value,
        shortened=SHORTENED.value,
        **changed(),
    )
    if jax.process_index():
        return
    counts = ", ".join(f"{n} {split}" for split, n in made.counts.items())
    print(f"{OUT.value}: {counts}; latents {'x'.join(map(str, made.latent_shape))}, measured scale {made.scale:.4f}")
    if made.classes:
        print(f"{len(made.classes)} classes: {', '.join(made.classes[:20])}{', ...' if len(made.classes) > 20 else ''}")
    if made.skipped:
        print(f"left out: {made.skipped} pictures or damaged files; {OUT.value}/skipped.jsonl says which and why")


def changed() -> dict[str, Any]:
    """The settings of opening and storing that were given, by their names in lcm_jax.encoding."""
    settings = SIZE, CROP, FLIP, SEED, SIZE_IDS, BROKEN, THREADS
    given = {flag.name: flag.value for flag in settings if flag.value != flag.default}
    given |= {name: value for name, value in opening.how().items() if value is not None}
    return {**given, **({"states": False} if TEXT.value == "none" else {})}


if __name__ == "__main__":
    entry.run(main)
