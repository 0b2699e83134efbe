"""The folder of a run as it begins: new, the same run's, or refused."""

import json
import shutil
import zlib
from pathlib import Path

import jax

from lcm_jax.assembly import Run
from lcm_jax.data import manifest
from lcm_jax.export.new_folder import CARD, is_export
from lcm_jax.parallel.agreement import on_all, the_same
from lcm_jax.run_copy import CONFIG, Place
from lcm_jax.sections import fixed
from lcm_jax.settings import differences
from lcm_jax.source import on_host, text_networks
from lcm_jax.weights import diffusers_folder, folder

CURRICULUM = "objective.steps "  # how a difference in its length begins


def open_folder(run: Run, place: Place) -> None:
    """Writes config and description of a new run; ValueError if the folder is another run's, or not shared by all."""
    where = place.here
    told = json.dumps(run.config)
    if not the_same(zlib.crc32(json.dumps(run.config, sort_keys=True).encode())):
        raise ValueError("the processes were given different configs: start each with the same command")
    config = where / CONFIG
    new = not config.exists()
    if new and (found := finished(place)):
        raise ValueError(f"{where} has a {found}, as models and data sets have: give another --run, to keep them")
    if not new:
        before, now = json.loads(config.read_text()), json.loads(told)
        if differ := differences(fixed(before), fixed(now)):
            length = before.get("objective", {}).get("steps")  # a curriculum's; where not given, the run's steps
            kept = f" (--config.objective.steps={length})" if length and differ[0].startswith(CURRICULUM) else ""
            raise ValueError(
                f"{where} holds a run whose config differs in {', '.join(differ)}: choose another --run, "
                f"or give the same config to go on{kept}"
            )
    if jax.process_index() == 0:
        if new:
            write_description(run, where)
        folder.write_text(config, json.dumps(run.config, indent=2) + "\n")
        place.send()
    on_all(True)  # the first process has written
    if not on_all(place.has(CONFIG)):
        raise ValueError(f"{where} is not the same folder for every process: give a --run on storage that all share")


def finished(place: Place) -> str | None:
    """The file by which a folder is a model or a data set that was finished; None for others."""
    exported = (folder.DESCRIPTION,) if place.has(CARD) else ()  # a run's, too, has a description
    for name in (diffusers_folder.INDEX, manifest.FILE, *exported):
        if place.has(name):
            return name
    return CARD if is_export(place.here) else None  # adapters, a single file


def write_description(run: Run, where: Path) -> None:
    """Writes a new run's description and the networks that it does not train."""
    where.mkdir(parents=True, exist_ok=True)
    extra = {} if run.model is None else {name: run.model.load(name, on_host) for name in text_networks(run.spec)}
    folder.write(where, run.spec.to_json(), {**run.networks, **extra}, "float32")
    for tokenizer in run.model.tokenizers if extra else ():
        shutil.copytree(tokenizer, where / tokenizer.name, dirs_exist_ok=True)
