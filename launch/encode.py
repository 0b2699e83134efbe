"""Encodes captioned pictures as latents and caption states, or lists what is wrong with them.

    python -m launch.encode --reader twemoji --model emoji-teacher --out data/emoji
    python -m launch.encode --folder PICTURES --model emoji-teacher --out data/mine --check

Interrupted, it goes on where it stopped. --check changes nothing and exits with 1 if there are problems.
"""

import json
import sys
from typing import Any

from absl import flags

from launch import entry

READER = flags.DEFINE_string("reader", None, "Who finds the pictures: twemoji or image_folder (meant by --folder).")
FOLDER = flags.DEFINE_string("folder", None, "Pictures, captioned by metadata.jsonl, metadata.csv or a .txt each.")
OPTIONS = flags.DEFINE_multi_string("options", [], "KEY=VALUE for the reader, such as tag=flag; repeatable.")
MODEL = flags.DEFINE_string("model", "emoji-teacher", "Shipped or exported model whose encoders are used.")
OUT = flags.DEFINE_string("out", None, "Folder of the latent data set.")
CHECK = flags.DEFINE_bool("check", False, "List the problems of the pictures, and of --out if it is there.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Pictures a call.")
SHARD_SIZE = flags.DEFINE_integer("shard_size", 1024, "Pictures a shard.")
TOKENS = flags.DEFINE_bool("tokens", False, "Store token ids beside the captions' states.")
SHORTENED = flags.DEFINE_integer(
    "shortened", 0, "Store this many shorter captions of each training picture instead of its own.", lower_bound=0
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a data set that was made otherwise.")


def main() -> None:
    options = dict(setting(option) for option in OPTIONS.value)
    if FOLDER.value is not None:
        options["folder"] = FOLDER.value
    reader = READER.value or ("image_folder" if FOLDER.value else None)
    if reader is None:
        entry.stop("give --reader NAME, or --folder PICTURES")
    if OUT.value is None and not CHECK.value:
        entry.stop("give --out, the folder of the latent data set")
    from lcm_jax import encoding

    if CHECK.value:
        problems = encoding.check(MODEL.value, reader, options, OUT.value)
        print(encoding.report(problems))
        sys.exit(1 if problems else 0)
    made = encoding.encode(
        MODEL.value,
        reader,
        options,
        OUT.value,
        BATCH_SIZE.value,
        SHARD_SIZE.value,
        TOKENS.value,
        OVERWRITE.value,
        shortened=SHORTENED.value,
    )
    counts = ", ".join(f"{n} {split}" for split, n in made.counts.items())
    print(f"{OUT.value}: {counts}; latents {'x'.join(map(str, made.latent_shape))}, measured scale {made.scale:.4f}")


def setting(option: str) -> tuple[str, Any]:
    """KEY=VALUE, the value read as JSON where it is JSON (numbers, true, null) and as text otherwise."""
    key, equals, value = option.partition("=")
    if not key or not equals:
        entry.stop(f"--options takes KEY=VALUE, not {option!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    entry.run(main)
