"""Captioned images -> a folder of latent shards: resumable, verified, every file whole or absent."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lcm_jax.data import images, manifest, resume, shards
from lcm_jax.data.classes import class_names, number_of, places
from lcm_jax.data.crop import Crop
from lcm_jax.data.encoders import Encoders
from lcm_jax.data.example import HELDOUT, TRAIN, Example, counted
from lcm_jax.data.latent_stats import LatentStats
from lcm_jax.data.manifest import Manifest, Row
from lcm_jax.data.processes import ALONE, Processes, Run
from lcm_jax.data.resume import Note

BROKEN = ("stop", "skip")
NO_CAPTION = "no caption"
DAMAGED = "damaged file"  # with a number, in the place of a key


def encode(
    examples: Sequence[Example],
    encode_images: Callable | None,
    encode_text: Callable | None,
    out_dir: str | Path,
    image_size: int,
    batch_size: int = 32,
    shard_size: int = 1024,
    identity: dict | None = None,
    sketch: Sequence[float] = (),
    dataset: dict | None = None,
    tokenize: Callable | None = None,
    moment_dtype: str = "float16",
    threads: int = 4,
    overwrite: bool = False,
    progress: bool = True,
    crop: str = "center",
    flip: float = 0.0,
    seed: int = 0,
    size_ids: bool = False,
    broken: str = "stop",
    processes: Processes = ALONE,
    draw: Callable | None = None,
    drawn: dict | None = None,
    look: images.Look = images.PLAIN,
) -> Manifest:
    """Write `examples` as latent shards in `out_dir`; run again after an interruption, it goes on from there.

    The callables are those of `Encoders`, `draw` for examples without pictures, of which `drawn` says how (JSON
    values); `crop`, `flip` and `seed` those of `data.crop.Crop`, whose ids are
    stored as "time_ids" with `size_ids`. `identity` (JSON values: names and hashes of the encoders) guards the
    folder: finished shards of the same identity, settings and examples are verified by sha256 and kept, shards
    that fail are made anew, and a folder made otherwise raises ValueError unless `overwrite`. `sketch` are numbers that
    tell the autoencoder (models.encoder_sketch), `dataset` is the name and attribution of the pictures. An image that
    cannot be read or has no caption, and what could not be listed of damaged files (Found.damage), raises ValueError,
    or with `broken` "skip" is left out and listed in skipped.jsonl; "stop" after "skip" tries again what it left out.
    Labels go into the rows, the names of their classes into the manifest (data.classes).

    Several `processes` that call this alike encode each its own shards into a folder they share, and the first writes
    the manifest. The bytes are the same for any number of them, and any number goes on with what another began. Where
    one fails, the others raise OtherFailed after the shard they are at.
    """
    if encode_text is None and tokenize is None:
        raise ValueError("give encode_text, tokenize or both: the captions have to be stored in some form")
    if draw is None and any(e.load is None for e in examples):
        raise ValueError("these are captions without pictures: have them drawn by launch.synthesize")
    if broken not in BROKEN:
        raise ValueError(f"broken is {broken!r}; choose one of {', '.join(BROKEN)}")
    cropped = Crop(image_size, image_size, crop, flip, seed)
    out, skips, first = Path(out_dir), broken == "skip", processes.index == 0
    damage = _damage(examples, skips)
    ordered, silent = _in_order(examples, skips)
    classes = class_names(examples)
    row_of = partial(_row, places(classes))
    plan = {
        "encoders": json.loads(json.dumps(identity or {})),
        "image_size": image_size,
        "moment_dtype": moment_dtype,
        "stores": [name for name, f in (("context", encode_text), ("tokens", tokenize)) if f is not None],
        "rows_sha256": hashlib.sha256(_text(map(row_of, ordered)).encode()).hexdigest(),
        "shards": _layout(ordered, shard_size),
        # Settings that are not the default: folders made before there were any can be taken up.
        **{"crop" if name == "place" else name: value for name, value in cropped.settings.items()},
        **({"size_ids": True} if size_ids else {}),
        **({"classes": classes} if classes else {}),
        **look.settings,
        **{f"drawn.{name}": value for name, value in (drawn or {}).items()},
    }
    if not processes.the_same(resume.number(plan)):
        raise ValueError("the processes differ in their settings or in the pictures they find: start them alike")
    if first:
        out.mkdir(parents=True, exist_ok=True)
        if overwrite:
            resume.clear(out)
    processes.on_all(True)
    chunks = {s["file"]: ordered[s["first_row"] : s["first_row"] + s["count"]] for s in plan["shards"]}
    known = resume.known_shards(out, plan, {file: [e.key for e in chunk] for file, chunk in chunks.items()})
    usable = {file: note for file, note in known.items() if skips or not note.skipped}
    own = processes.part(list(usable))
    whole = {file: usable[file] for file in own if resume.whole(out, file, usable[file])}
    complete = len(usable) == len(chunks) and len(whole) == len(own) and _complete(out, damage)
    if processes.on_all(complete):  # and all have looked before anything is changed
        if first:
            resume.tidy(out)
        return manifest.read(out)
    own = {*own, *processes.part([file for file in chunks if file not in usable])}
    for file in own - whole.keys():
        resume.path_of(out, file).unlink(missing_ok=True)
    if first:
        resume.begin(out, plan, known)
    processes.on_all(True)
    run = Run(out, processes)
    with run.told():
        encoders = Encoders(encode_images, encode_text, tokenize, batch_size, moment_dtype, draw)
        empty = {name: array[0] for name, array in encoders.captions([""]).items()}
        total = sum(len(chunks[file]) for file in own)
        doing = "encode" if draw is None else "draw"
        with (
            tqdm(total=total, unit="image", desc=doing, disable=not progress, dynamic_ncols=True) as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            make = partial(_make, out, row_of, encoders, cropped, skips, size_ids, pool, bar)
            for shard in plan["shards"]:
                file, chunk = shard["file"], chunks[shard["file"]]
                if file not in own:
                    continue
                run.check()
                note = _taken_up(out / file, whole.get(file), len(chunk))
                if note is None:
                    note = make(shard, chunk)
                else:
                    bar.update(len(chunk))
                _check_alike(out / file, note.shapes, empty)
                resume.write(out, file, note)
        if not first:
            run.wait_for(out / manifest.FILE)
            return manifest.read(out)
        for name, array in empty.items():
            np.save(out / manifest.UNCONDITIONAL.format(name), array)
        all_shards = _gathered(run, plan["shards"], chunks)
        skipped = damage | silent | all_shards.skipped
        _list_skipped(out, skipped, [*damage, *(e.key for e in examples)])
        rows_text, stats = _text(map(row_of, all_shards.kept)), all_shards.stats
        manifest.write_text(out / manifest.ROWS, rows_text)
        np.save(out / manifest.ELEMENTS, np.stack(stats.element).astype(np.float32))
        channel_mean, channel_std = stats.channel
        tokens_shape = empty["tokens"].shape if "tokens" in empty else ()
        result = Manifest(
            image_size=image_size,
            latent_shape=all_shards.shape,
            context_shape=empty["context"].shape if "context" in empty else None,
            tokens_length=tokens_shape[-1] if tokens_shape else None,
            counts=dict(Counter(e.split for e in all_shards.kept)),
            scale=stats.scale,
            channel_mean=tuple(channel_mean.tolist()),
            channel_std=tuple(channel_std.tolist()),
            encoders=plan["encoders"],
            sketch=tuple(map(float, sketch)),
            dataset=dataset or {},
            plan=resume.fingerprint(plan),
            shards=tuple(all_shards.listed),
            rows_sha256=hashlib.sha256(rows_text.encode()).hexdigest(),
            pooled_width=empty["pooled"].shape[-1] if "pooled" in empty else None,
            tokens_towers=tokens_shape[0] if len(tokens_shape) == 2 else None,
            size_ids=size_ids,
            crop=cropped.settings,
            skipped=len(skipped),
            classes=classes,
        )
        manifest.write(out, result)
    resume.tidy(out)
    return result


@dataclass
class _Gathered:
    """What the manifest says of all shards."""

    listed: list[dict] = field(default_factory=list)
    kept: list[Example] = field(default_factory=list)  # in the order of the rows
    skipped: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] = ()  # of a latent
    stats: LatentStats = field(default_factory=LatentStats)


def _gathered(run: Run, planned: Sequence[dict], chunks: Mapping[str, list[Example]]) -> _Gathered:
    """From the notes of all processes, each waited for; ValueError if no image of the measured split could be read."""
    found = _Gathered()
    measured = planned[0]["split"]  # train comes first, where there is any
    for shard in planned:
        chunk, note = chunks[shard["file"]], run.note(shard["file"])
        kept = [e for e in chunk if e.key not in note.skipped]
        found.listed.append({**shard, "first_row": len(found.kept), "count": len(kept), **note.file})
        found.kept += kept
        found.skipped |= note.skipped
        found.shape = note.shapes.get("mean", found.shape)
        if shard["split"] == measured:
            found.stats.join(note.stats)
    if not found.stats.count:
        key, reason = next(iter(found.skipped.items()))
        raise ValueError(f"no {measured} image could be read, first {key!r}: {reason}")
    return found


def _make(
    out: Path,
    row_of: Callable[[Example], Row],
    encoders: Encoders,
    cropped: Crop,
    skips: bool,
    size_ids: bool,
    pool: ThreadPoolExecutor,
    bar: tqdm,
    shard: dict,
    chunk: list[Example],
) -> Note:
    """Encodes one shard of the plan."""
    path = out / shard["file"]
    unreadable: dict[str, str] = {}
    prepare = partial(_prepare, cropped, unreadable if skips else None) if encoders.draw is None else cropped.nothing
    shards.write(path, _records(chunk, shard["first_row"], row_of, encoders, prepare, size_ids, pool, bar))
    skipped = {e.key: unreadable[e.key] for e in chunk if e.key in unreadable}  # in order, whichever thread was first
    return Note(path.stat().st_size, shards.sha256(path), skipped, *_measured(path))


def _taken_up(path: Path, note: Note | None, count: int) -> Note | None:
    """The note of a whole shard of `count` examples, complete; None if the shard has to be made."""
    if note is None or note.shapes is not None:
        return note
    shapes, stats = _measured(path)
    return replace(note, shapes=shapes, stats=stats) if stats.count == count - len(note.skipped) else None


def _measured(path: Path) -> tuple[dict[str, tuple[int, ...]], LatentStats]:
    """Shapes of an example's arrays, and sums: of what is stored, so a resumed encoding gives the same to the bit."""
    shard, stats = shards.Shard(path), LatentStats()
    if not shard.count():
        return {}, stats
    arrays = [a for _, a in shard.read_all()]
    mean, logvar = (np.stack([a[name] for a in arrays]) for name in ("mean", "logvar"))
    stats.add(mean, np.exp(logvar.astype(np.float64)))
    return {name: a.shape for name, a in arrays[0].items()}, stats


def _complete(out: Path, damage: Mapping[str, str]) -> bool:
    """Whether nothing but perhaps shards is missing from a folder, and its sources are as damaged as they were."""
    if not (out / manifest.FILE).exists():
        return False
    made = manifest.read(out)
    sides = [manifest.UNCONDITIONAL.format(name) for name in manifest.CAPTION_ARRAYS if name in made.shapes]
    whole = all((out / file).exists() for file in [manifest.ROWS, manifest.ELEMENTS, *sides])
    skipped = manifest.skipped(out)
    same = {key: line for key, line in skipped.items() if key.startswith(DAMAGED)} == damage
    return whole and same and len(skipped) == made.skipped


def _text(rows: Iterable[Row]) -> str:
    return "".join(json.dumps(row.to_json(), ensure_ascii=False) + "\n" for row in rows)


def _damage(examples: Sequence[Example], skips: bool) -> dict[str, str]:
    """What could not be listed of damaged files, by names that stand for keys; ValueError unless it `skips`."""
    lines = getattr(examples, "damage", ())
    if lines and not skips:
        more = f" (and {len(lines) - 1} more like it)" if lines[1:] else ""
        raise ValueError(f"{lines[0]}{more}; restore the files, or leave out what is damaged with --broken skip")
    return {f"{DAMAGED} {number}": line for number, line in enumerate(lines, 1)}


def _list_skipped(out: Path, skipped: dict[str, str], order: Sequence[str]) -> None:
    """Write what is left out, in the order of the keys; no file when that is nothing."""
    rows = [{"key": key, "reason": skipped[key]} for key in order if key in skipped]
    if rows:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        manifest.write_text(out / manifest.SKIPPED, text)
    else:
        (out / manifest.SKIPPED).unlink(missing_ok=True)


def _check_alike(path: Path, shapes: Mapping[str, tuple[int, ...]], empty: dict[str, np.ndarray]) -> None:
    stored = {name: shape for name, shape in shapes.items() if name in manifest.CAPTION_ARRAYS}
    given = {name: a.shape for name, a in empty.items() if shapes}
    if stored != given:
        raise ValueError(
            f"{path} stores captions as {stored}, the encoders now give {given}; choose another folder or "
            "encode with overwrite"
        )


def _in_order(examples: Sequence[Example], skips: bool) -> tuple[list[Example], dict[str, str]]:
    """Train examples first, so that a split is a run of whole shards; and what has no caption, if `skips`."""
    if not examples:
        raise ValueError("no examples to encode: the reader found nothing, or the filter left nothing")
    repeated = [key for key, n in Counter(e.key for e in examples).items() if n > 1]
    if repeated:
        raise ValueError(
            f"{counted(len(repeated), 'key')} used twice, first {repeated[0]!r}; run the check and mend them"
        )
    silent = [e.key for e in examples if not e.caption]
    if silent and (not skips or len(silent) == len(examples)):
        what = f"{counted(len(silent), 'image')} without a caption, first {silent[0]!r}; run the check and mend them"
        raise ValueError(what + ("" if skips else ", or leave them out with broken=skip"))
    ordered = [e for split in (TRAIN, HELDOUT) for e in examples if e.split == split and e.caption]
    return ordered, dict.fromkeys(silent, NO_CAPTION)


def _row(place: Mapping[str, int], example: Example) -> Row:
    label = number_of(example.label, place)
    return Row(example.key, example.caption, example.group, example.split, example.tags, label)


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


def _prepare(
    crop: Crop, unreadable: dict[str, str] | None, example: Example
) -> tuple[np.ndarray, np.ndarray] | None:
    """Pixels in [-1, 1] and size ids of an image; None for a broken one, noted in `unreadable` where there is one."""
    try:
        image = example.load()
    except ValueError as error:
        if unreadable is None:
            raise ValueError(f"{error}, or leave such images out with broken=skip") from error
        unreadable[example.key] = str(error)
        return None
    pixels, ids = crop(image, example.key)
    return images.to_float(pixels), ids


def _records(
    chunk: list[Example],
    first_row: int,
    row_of: Callable[[Example], Row],
    encoders: Encoders,
    prepare: Callable,
    size_ids: bool,
    pool: ThreadPoolExecutor,
    bar: tqdm,
) -> Iterator[bytes]:
    """The packed records of one shard; the next batch is decoded by `pool` while this one is encoded."""
    rows = list(enumerate(chunk, first_row))
    batches = [rows[i : i + encoders.batch_size] for i in range(0, len(rows), encoders.batch_size)]
    waiting = [pool.submit(prepare, e) for _, e in batches[0]]
    for batch, following in zip(batches, [*batches[1:], []], strict=True):
        prepared = [future.result() for future in waiting]
        waiting = [pool.submit(prepare, e) for _, e in following]
        readable = [(*row, *found) for row, found in zip(batch, prepared, strict=True) if found is not None]
        bar.update(len(batch))
        if not readable:
            continue
        numbers, kept, pixels, ids = zip(*readable, strict=True)
        told = encoders.captions([e.caption for e in kept])
        if encoders.draw is None:
            arrays = encoders.pixels(np.stack(pixels)) | told
        else:
            arrays = encoders.drawn([e.key for e in kept], told) | told
        if size_ids:
            arrays["time_ids"] = np.stack(ids)
        for i, (number, example) in enumerate(zip(numbers, kept, strict=True)):
            own = {name: a[i] for name, a in arrays.items()}
            odd = [name for name, a in own.items() if not np.isfinite(a).all()]
            if odd:
                raise ValueError(f"{example.key}: {', '.join(odd)} is not finite as {encoders.moment_dtype}")
            # the row is that of the whole plan: images left out do not shift those behind them
            yield shards.pack({"row": number, **row_of(example).to_json()}, own)
