"""Scores at the size of published tables: FID and CLIP score of tens of thousands of pictures, each seen once."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from lcm_jax import cache
from lcm_jax.assess.clip_judge import open_clip
from lcm_jax.assess.feature_networks import feature_network
from lcm_jax.assess.generation import identity
from lcm_jax.assess.picture_scores import score_pictures
from lcm_jax.assess.reference_statistics import RealImages, of_files, reference
from lcm_jax.data import files
from lcm_jax.data.image_folder import SUFFIXES
from lcm_jax.evaluate.report import table
from lcm_jax.image_keys import firsts
from lcm_jax.parallel.agreement import on_all
from lcm_jax.pipeline import Pipeline
from lcm_jax.settings import known
from lcm_jax.weights.folder import write_text

KEYS = ("prompts", "samples", "seed", "w", "student", "teacher", "features", "clip")
AT_ONCE = 64  # prompts between two looks through the feature network


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    who: str
    sampler: str
    steps: int
    w: float


def rows(config: Mapping[str, Any], teacher: bool) -> list[Row]:
    """The lines a config asks for: the student's step counts, and those of each sampler of a teacher."""
    known(config, KEYS, "config")
    found = [Row("student", "lcm", steps, config["w"]) for steps in config["student"]["steps"]]
    if teacher:
        of = config["teacher"]
        found += [Row("teacher", name, steps, of["w"]) for name in of["samplers"] for steps in of["steps"]]
    return found


def run(
    config: Mapping[str, Any],
    pipes: Mapping[str, Pipeline],
    prompts: Sequence[str],
    real: RealImages,
    out: str | Path,
    about: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Scores every row of a config for {"student": .., "teacher": ..}, a JSON file each: an interrupted run goes on.

    The first `config.prompts` of `prompts` are drawn, `config.samples` pictures of each, this process's part here.
    Raises ValueError for fewer prompts than asked for, a sampler or steps a model does not have.
    """
    asked = config["prompts"]
    if len(prompts) < asked:
        raise ValueError(f"config.prompts is {asked}, {len(prompts)} were given: give more, or lower it")
    wanted = rows(config, "teacher" in pipes)
    for row in wanted:
        pipes[row.who].setting(row.sampler, row.steps)  # raises now what cannot be sampled
    net = feature_network(config["features"])
    clip = open_clip(config["clip"]) if config.get("clip") else None
    statistics = reference(net, real, cache.folder() / "statistics")
    share = slice(jax.process_index(), asked, jax.process_count())
    own, first = list(prompts[share]), firsts(prompts[:asked], config["samples"])[share]
    captions = [prompt for prompt in own for _ in range(config["samples"])]
    models = {who: identity(pipe) for who, pipe in pipes.items()}
    judged = {"images": real.identity, "network": net.hash, "clip": clip and clip.hash}
    found = []
    for row in wanted:
        path = Path(out) / f"{row.who}-{row.sampler}-{row.steps}.json"
        told = {
            "row": vars(row),
            "model": models[row.who],
            "seed": config["seed"],
            "samples": config["samples"],
            "prompts": asked,
            "evaluations": pipes[row.who].nfe(pipes[row.who].setting(row.sampler, row.steps, w=row.w)),
            "guidance": "w is LCM's: cond + w (cond - uncond); guidance = w + 1",
            "judged": judged,
        }

        def score(row: Row = row, path: Path = path) -> dict[str, Any]:
            with tqdm(total=len(captions), unit="image", desc=path.stem, disable=not progress) as bar:
                sets = pictures(pipes[row.who], row, own, first, config["samples"], config["seed"], bar.update)
                return score_pictures(sets, captions, net, statistics, clip)

        found.append(scored(path, told, score, about or {}))
    write_text(Path(out) / "table.md", as_table(found) + "\n")
    return {"rows": found}


def scored(
    path: Path, told: Mapping[str, Any], score: Callable[[], Mapping[str, Any]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """A row's record: what `path` holds if that was made of all that is `told`, else what score() finds, kept there.

    All processes must call it: where one of them has no such file they score together.
    """
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if not on_all({k: kept.get(k) for k in told} == json.loads(json.dumps(told))):
        kept = {**told, **score(), **about}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept, indent=1) + "\n")
    return kept


def real_pictures(folder: str | Path, size: int) -> RealImages:
    """Every picture below a folder, cropped to size x size; FileNotFoundError or ValueError if there are none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} of real pictures")
    paths = [path for path in files.below(folder) if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return of_files(paths, size)


def pictures(
    pipe: Pipeline,
    row: Row,
    prompts: Sequence[str],
    first: Sequence[int],
    samples: int,
    seed: int,
    done: Callable[[int], object],
) -> Iterator[np.ndarray]:
    """The pictures of prompts, numbered from `first` on, set by set."""
    for start in range(0, len(prompts), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        drawn = pipe(
            prompts[some], n=samples, steps=row.steps, w=row.w, seed=seed, sampler=row.sampler, first=first[some]
        )
        done(len(drawn))
        yield drawn


def as_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a line a row."""
    name = found[0]["frechet"]["name"]
    lines = []
    for one in found:
        row, clip = one["row"], one.get("clip_score")
        score = "" if clip is None else f"{clip['mean']:.2f}"
        distance = f"{one['frechet']['value']:.2f}"
        lines.append(
            [row["who"], row["sampler"], str(row["steps"]), str(one["evaluations"]), f"{row['w']:g}", distance, score]
        )
    return "\n".join(table(["model", "sampler", "steps", "evaluations", "w", name, "CLIP score"], lines))
