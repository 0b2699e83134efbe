"""Captioned images -> a folder of latent shards: resumable, verified, every file whole or absent."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lcm_jax.data import images, manifest, resume, shards
from lcm_jax.data.example import HELDOUT, TRAIN, Example
from lcm_jax.data.latent_stats import LatentStats
from lcm_jax.data.manifest import Manifest, Row


@dataclass(frozen=True)
class Encoders:
    """The callables that turn a batch into arrays, always of `batch_size` rows so that jit compiles once.

    `images`: float32 [b, H, W, 3] in [-1, 1] -> moments [b, h, w, 2c]; `text`: captions -> context [b, l, d];
    `tokens`: captions -> ids [b, l]. `text` or `tokens` may be None, not both.
    """

    images: Callable
    text: Callable | None
    tokens: Callable | None
    batch_size: int
    moment_dtype: str

    def captions(self, captions: list[str]) -> dict[str, np.ndarray]:
        """The arrays stored for at most `batch_size` captions."""
        padded = captions + [captions[-1]] * (self.batch_size - len(captions))
        arrays = {}
        if self.text is not None:
            arrays["context"] = np.asarray(self.text(padded)).astype(np.float16)[: len(captions)]
        if self.tokens is not None:
            arrays["tokens"] = np.asarray(self.tokens(padded)).astype(np.int32)[: len(captions)]
        return arrays

    def pixels(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Posterior mean and logvar of at most `batch_size` images, float32 [b, H, W, 3] in [-1, 1]."""
        missing = self.batch_size - len(pixels)
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], missing, 0)]) if missing else pixels
        moments = np.asarray(self.images(padded), np.float32)[: len(pixels)]
        mean, logvar = np.split(moments, 2, axis=-1)
        with np.errstate(over="ignore"):  # what overflows is reported with its key
            return {"mean": mean.astype(self.moment_dtype), "logvar": logvar.astype(self.moment_dtype)}


def encode(
    examples: Sequence[Example],
    encode_images: Callable,
    encode_text: Callable | None,
    out_dir: str | Path,
    image_size: int,
    batch_size: int = 32,
    shard_size: int = 1024,
    identity: dict | None = None,
    dataset: dict | None = None,
    tokenize: Callable | None = None,
    moment_dtype: str = "float16",
    threads: int = 4,
    overwrite: bool = False,
    progress: bool = True,
) -> Manifest:
    """Write `examples` as latent shards in `out_dir`; run again after an interruption, it goes on from there.

    The callables are those of `Encoders`. `identity` (JSON values: names and hashes of the encoders) guards
    the folder: finished shards of the same identity and examples are verified by sha256 and kept, shards
    that fail are made anew, and a folder made otherwise raises ValueError unless `overwrite`. `dataset`
    holds the name and attribution of the pictures.
    """
    if encode_text is None and tokenize is None:
        raise ValueError("give encode_text, tokenize or both: the captions have to be stored in some form")
    out = Path(out_dir)
    ordered = _in_order(examples)
    rows_text = "".join(json.dumps(asdict(_row(e)), ensure_ascii=False) + "\n" for e in ordered)
    plan = {
        "encoders": json.loads(json.dumps(identity or {})),
        "image_size": image_size,
        "moment_dtype": moment_dtype,
        "stores": [name for name, f in (("context", encode_text), ("tokens", tokenize)) if f is not None],
        "rows_sha256": hashlib.sha256(rows_text.encode()).hexdigest(),
        "shards": _layout(ordered, shard_size),
    }
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        resume.clear(out)
    finished = resume.finished_shards(out, plan)
    sides = [manifest.ROWS, manifest.ELEMENTS, *(manifest.UNCONDITIONAL.format(n) for n in plan["stores"])]
    complete = all((out / file).exists() for file in [manifest.FILE, *sides])
    if complete and len(finished) == len(plan["shards"]):
        return manifest.read(out)
    manifest.write_text(out / manifest.ROWS, rows_text)
    resume.save(out, plan, finished)
    (out / manifest.FILE).unlink(missing_ok=True)  # until the end the folder is an unfinished one

    encoders = Encoders(encode_images, encode_text, tokenize, batch_size, moment_dtype)
    empty = {name: array[0] for name, array in encoders.captions([""]).items()}
    for name, array in empty.items():
        np.save(out / manifest.UNCONDITIONAL.format(name), array)

    stats, shape = LatentStats(), ()
    has_train = any(e.split == TRAIN for e in ordered)
    with (
        tqdm(
            total=len(ordered), unit="image", desc="encode", disable=not progress, dynamic_ncols=True
        ) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        for shard in plan["shards"]:
            path = out / shard["file"]
            chunk = ordered[shard["first_row"] : shard["first_row"] + shard["count"]]
            if shard["file"] not in finished:
                shards.write(path, _records(chunk, shard["first_row"], encoders, image_size, pool, bar))
                finished[shard["file"]] = {"bytes": path.stat().st_size, "sha256": shards.sha256(path)}
                resume.save(out, plan, finished)
            else:
                bar.update(shard["count"])
            # Statistics come from what is stored, so a resumed encoding gives the same numbers to the bit.
            arrays = [a for _, a in shards.Shard(path).read_all()]
            shape = arrays[0]["mean"].shape
            if shard["split"] == TRAIN or not has_train:
                stats.add(np.stack([a["mean"] for a in arrays]), np.stack([a["logvar"] for a in arrays]))

    np.save(out / manifest.ELEMENTS, np.stack(stats.element).astype(np.float32))
    channel_mean, channel_std = stats.channel
    result = Manifest(
        image_size=image_size,
        latent_shape=shape,
        context_shape=empty["context"].shape if "context" in empty else None,
        tokens_length=len(empty["tokens"]) if "tokens" in empty else None,
        counts=dict(Counter(e.split for e in ordered)),
        scale=stats.scale,
        channel_mean=tuple(channel_mean.tolist()),
        channel_std=tuple(channel_std.tolist()),
        encoders=plan["encoders"],
        dataset=dataset or {},
        plan=resume.fingerprint(plan),
        shards=tuple({**shard, **finished[shard["file"]]} for shard in plan["shards"]),
        rows_sha256=plan["rows_sha256"],
    )
    manifest.write(out, result)
    (out / resume.PROGRESS).unlink()
    return result


def _in_order(examples: Sequence[Example]) -> list[Example]:
    """Train rows first, so that a split is a run of whole shards."""
    if not examples:
        raise ValueError("no examples to encode: the reader found nothing, or the filter left nothing")
    repeated = [key for key, n in Counter(e.key for e in examples).items() if n > 1]
    if repeated:
        raise ValueError(
            f"{len(repeated)} keys occur twice, first {repeated[0]!r}; run the check and mend them"
        )
    silent = [e.key for e in examples if not e.caption]
    if silent:
        raise ValueError(
            f"{len(silent)} images have no caption, first {silent[0]!r}; run the check and mend them"
        )
    return [e for split in (TRAIN, HELDOUT) for e in examples if e.split == split]


def _row(example: Example) -> Row:
    return Row(example.key, example.caption, example.group, example.split, example.tags)


def _layout(ordered: list[Example], shard_size: int) -> list[dict]:
    layout, first = [], 0
    for split in (TRAIN, HELDOUT):
        n = sum(e.split == split for e in ordered)
        for number, start in enumerate(range(0, n, shard_size)):
            count = min(shard_size, n - start)
            file = f"{split}-{number:05d}-of-{-(-n // shard_size):05d}.array_record"
            layout.append({"file": file, "split": split, "first_row": first + start, "count": count})
        first += n
    return layout


def _records(
    chunk: list[Example],
    first_row: int,
    encoders: Encoders,
    image_size: int,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> Iterator[bytes]:
    """The packed records of one shard; the next batch is decoded by `pool` while this one is encoded."""

    def prepare(example: Example) -> np.ndarray:
        return images.to_float(images.fit(example.load(), image_size))

    batches = [chunk[i : i + encoders.batch_size] for i in range(0, len(chunk), encoders.batch_size)]
    waiting = [pool.submit(prepare, e) for e in batches[0]]
    row = first_row
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        pixels = np.stack([future.result() for future in waiting])
        waiting = [pool.submit(prepare, e) for e in following]
        arrays = encoders.pixels(pixels) | encoders.captions([e.caption for e in batch])
        for i, example in enumerate(batch):
            own = {name: a[i] for name, a in arrays.items()}
            odd = [name for name, a in own.items() if not np.isfinite(a).all()]
            if odd:
                raise ValueError(f"{example.key}: {', '.join(odd)} is not finite as {encoders.moment_dtype}")
            yield shards.pack({"row": row, **asdict(_row(example))}, own)
            row += 1
        bar.update(len(batch))
