"""A run on disk and its way through the loop: description, checkpoints, metrics and samples in one folder."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from lcm_jax import build, latent_norm, planning, sections
from lcm_jax.assembly import Run
from lcm_jax.data.image_loader import training_images
from lcm_jax.data.store import is_url
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.export import flax_folder
from lcm_jax.export.model_card import SOUGHT, with_levels
from lcm_jax.export.new_folder import CARD
from lcm_jax.machine import machine
from lcm_jax.models import flax_file, lora
from lcm_jax.models.edm_spec import EDMSpec
from lcm_jax.models.spec import ModelSpec
from lcm_jax.parallel.chips import of_kind
from lcm_jax.pipeline import Pipeline
from lcm_jax.run_copy import CONFIG, Place, checkpoints, holds_run, located, named, opened
from lcm_jax.run_opening import open_folder
from lcm_jax.run_samples import sample_hook
from lcm_jax.source import FlaxFolder, Spec, image_networks, network, on_host, open_model, text_networks
from lcm_jax.train import averages, lives, loop, metrics
from lcm_jax.train.checkpoint import Checkpointer, CheckpointError
from lcm_jax.train.course import Course, counted_seconds
from lcm_jax.train.metrics import MetricsWriter
from lcm_jax.train.state import State
from lcm_jax.typing import Params
from lcm_jax.weights import folder

log = logging.getLogger(__name__)
WEIGHTS = ("ema", "params", "target")
SAMPLES = "samples"
OPERATIONS = "operations.json"
MEASURED = 32  # images a call when latents are measured


def train(
    run: Run, where: str | Path, progress: bool = True, profile: tuple[int, int] | None = None
) -> State:
    """Starts the run in `where`, a path or a URL, or goes on with the one that is there; returns the last state.

    `profile` are the first and the last step to be recorded in the folder's profile.

    Of several processes the first alone writes what is not a checkpoint. Raises ValueError if the folder holds another
    run, or if another process was given another config.
    """
    with opened(where) as place:
        return train_in(place, run, progress, profile)


def train_in(place: Place, run: Run, progress: bool, profile: tuple[int, int] | None) -> State:
    """`train` in a place of this machine."""
    open_folder(run, place)
    where = place.here
    first, course = jax.process_index() == 0, None
    about = {"spec": run.spec.to_json(), "trains": run.trains}
    loop_settings = dict(run.config["loop"])
    keep = Checkpointer(checkpoints(where), about=about, **run.config["checkpoint"])
    restored = keep.restore(run.abstract)
    if restored is None:
        state, start = run.init(), 0
    else:
        state, start = restored.state, restored.step
        run.loader.set_state(restored.position)
    if first and start >= run.config["steps"]:
        at = f"{named(where)} is at step {start} of {run.config['steps']}"
        log.warning("%s: nothing left to train; give more --config.steps to go on", at)
    writer = MetricsWriter(where, start=start, steps=run.config["steps"], bar=progress) if first else None
    if first:
        lives.begin(where, start, {"machine": machine(), "processes": jax.process_count()})
        course = course_of(run, where)
    hook = sample_hook(run, where / SAMPLES) if loop_settings.get("sample_steps") else None
    try:
        return loop.run(
            run.step,
            state,
            run.frozen,
            run.loader,
            run.key,
            run.config["steps"],
            place_batch=run.place,
            checkpointer=keep,
            writer=writer,
            hooks=() if hook is None else (hook,),
            describe_batch=run.describe_batch,
            folder=where,
            profile=profile,
            course=course,
            **loop_settings,
        )
    finally:
        if writer is not None:
            writer.close()
        keep.close()
        run.loader.close()


def course_of(run: Run, where: Path) -> Course:
    """What the run's folder says of its time so far, and the least its steps can take."""
    before, rows = lives.read(where), metrics.read(where / metrics.FILE)
    counted = counted_seconds(rows, before, run.config["data"]["batch_size"])
    return Course(before[0]["time"], counted, least_seconds(run, where / OPERATIONS))


def least_seconds(run: Run, kept: Path) -> float | None:
    """Of a step at the rate that the devices' maker states; None where none is, and of an autoencoder's.

    Its operations are counted once a run, which takes as long as to trace it, and `kept`.
    """
    chip = of_kind(run.mesh.devices.flat[0].device_kind)
    if chip is None or chip.flops is None or run.trains == "autoencoder":
        return None
    if not kept.exists():
        folder.write_text(kept, json.dumps({"step": planning.operations(run.config)}) + "\n")
    return json.loads(kept.read_text())["step"] / (chip.flops * run.mesh.size)


def reopen(where: str | Path) -> tuple[Run, State]:
    """A run's parts and its newest state, to be looked at; its loader stands at the beginning.

    Raises FileNotFoundError for a folder without a run, CheckpointError for a run without a checkpoint.
    """
    where = Path(located(where))
    check_run(where)
    run = build.run(on_these_devices(json.loads((where / CONFIG).read_text())))
    keep = Checkpointer(checkpoints(where), read_only=True)
    try:
        restored = keep.restore(run.abstract)
    finally:
        keep.close()
    if restored is None:
        run.loader.close()
        raise CheckpointError(f"{where} holds no checkpoint yet: let it train until its first one")
    return run, restored.state


def on_these_devices(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config with a mesh of the devices present where its own takes another number of them."""
    try:
        sections.mesh_of(config)
    except ValueError as error:
        log.warning("%s; this look at the run takes all devices that are here", error)
        return {**config, "mesh": {"data": -1, "rules": config["mesh"].get("rules", "replicate")}}
    return config


def chosen(where: str | Path, weights: str) -> str:
    """The part of a run's checkpoints that `weights` names: of several averages "ema" means the first.

    `weights` is "ema", "params", "target" or one average, such as "ema/0.9999". Raises ValueError listing what there
    is.
    """
    kind, _, number = weights.partition("/")
    if kind not in WEIGHTS or (number and kind != "ema"):
        raise ValueError(f"unknown weights {weights!r}; choose one of {', '.join(WEIGHTS)}")
    if kind != "ema":
        return kind
    config = json.loads((Path(located(where)) / CONFIG).read_text())
    return averages.part(sections.average_names(config), number or None)


def load(where: str | Path, step: int | None = None, weights: str = "ema") -> tuple[Spec, dict[str, Params], int]:
    """A run's model: spec, networks (trained one from the checkpoint of `step`, newest if None) and that step.

    `weights` are those of `chosen`. An unreadable newest checkpoint is passed over with a warning.
    Raises FileNotFoundError or CheckpointError saying what is missing.
    """
    where = Path(located(where))
    check_run(where)
    weights = chosen(where, weights)
    model = FlaxFolder(where)
    spec = model.spec
    keep = Checkpointer(checkpoints(where), read_only=True)
    try:
        trains, part, step = newest(keep, spec, weights) if step is None else trained(keep, spec, weights, step)
    finally:
        keep.close()
    if trains == "lora":
        trains, part = "unet", merged(spec, part)
        about = {**spec.about, "merged adapters": spec.about["lora"]}
        spec = replace(spec, about={k: v for k, v in about.items() if k != "lora"})
    others = [name for name in image_networks(spec) if name != trains]
    return spec, {trains: part, **{name: model.load(name) for name in others}}, step


def best_step(where: str | Path) -> int:
    """Step of the checkpoint that the run keeps as its best; ValueError for a run that was not told what is best."""
    where = Path(located(where))
    check_run(where)
    told = json.loads((where / CONFIG).read_text())["checkpoint"]
    if not told.get("best_metric"):
        raise ValueError(f"{where} keeps no best checkpoint: train with config.checkpoint.best_metric=loss/mean, say")
    keep = Checkpointer(checkpoints(where), read_only=True, **told)
    try:
        step = keep.best_step()
    finally:
        keep.close()
    if step is None:
        raise ValueError(f"no checkpoint of {where} has the metric {told['best_metric']!r}: choose another --step")
    return step


def adapters(where: str | Path, step: int | None = None, weights: str = "ema") -> tuple[ModelSpec, Params, int]:
    """A run's adapters as they were trained, with spec and step; ValueError for a run that trains none."""
    where = Path(located(where))
    model = FlaxFolder(where)
    if "lora" not in model.spec.about:
        raise ValueError(f"{where} trains a whole network, no adapters: export it as another format")
    weights = chosen(where, weights)
    keep = Checkpointer(checkpoints(where), read_only=True)
    try:
        found = newest(keep, model.spec, weights) if step is None else trained(keep, model.spec, weights, step)
    finally:
        keep.close()
    return model.spec, found[1], found[2]


def merged(spec: ModelSpec, part: Params) -> Params:
    """The network that a run's adapters make of the model they belong to."""
    record = spec.about["lora"]
    return lora.merge(open_model(record["base"], record["variant"], spec.kind).load("unet"), part, record["alpha"])


def trained(keep: Checkpointer, spec: Spec, weights: str, step: int | None) -> tuple[str, Params, int | None]:
    """Name and parameters of the network that a checkpoint holds, on one device, and its step."""
    name = keep.describe_step(step)["trains"]
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    leaf = partial(jax.ShapeDtypeStruct, sharding=here)
    shapes = lora_shapes(spec) if name == "lora" else network(spec, name).abstract()
    abstract = jax.tree.map(lambda x: leaf(x.shape, x.dtype), shapes)
    return name, keep.restore_part(weights, abstract, step), step


def lora_shapes(spec: ModelSpec) -> Params:
    """The adapters of a run, abstract."""
    record = spec.about["lora"]
    config = lora.LoraConfig(record["rank"], record["alpha"], tuple(record["targets"]))
    return jax.eval_shape(lambda key: lora.init(key, network(spec, "unet").abstract(), config), jax.random.key(0))


def newest(keep: Checkpointer, spec: Spec, weights: str) -> tuple[str, Params, int | None]:
    """`trained` of the newest readable checkpoint; raises what the newest raised if none is."""
    first = None
    for step in keep.steps()[::-1]:
        try:
            return trained(keep, spec, weights, step)
        except CheckpointError as error:
            first = first or error
            log.warning("%s; trying the one before", error)
    if first is not None:
        raise first
    return trained(keep, spec, weights, None)  # says that there is none


def export(
    where: str | Path,
    out: str | Path,
    dtype: str = "float32",
    weights: str = "ema",
    step: int | None = None,
    overwrite: bool = False,
    msgpack: bool = True,
) -> Path:
    """Writes a run's model as a folder that describes itself (export.flax_folder), its config in `about`.

    An autoencoder leaves with latents of zero mean and unit variance over its training images, the scale that
    its description promises.
    """
    where = Path(located(where))
    spec, networks, step = load(where, step, weights)
    if spec.role == "autoencoder":
        data = json.loads((where / CONFIG).read_text())["data"]
        networks = {"autoencoder": normalised(spec, networks["autoencoder"], data)}
    description = recorded(spec, where, step, weights).to_json()
    model = FlaxFolder(where)
    networks |= {name: model.load(name, on_host) for name in text_networks(spec)}
    to_bytes = flax_file.to_bytes if msgpack else None
    return flax_folder.write(out, description, networks, to_bytes, dtype, overwrite, model.tokenizers)


def recorded(spec: Spec, where: str | Path, step: int, weights: str) -> Spec:
    """The spec with how it was trained in `about`: step, weights, config, and the same of what the run went on from."""
    where = Path(located(where))
    config = json.loads((where / CONFIG).read_text())
    before = {"before": spec.about["training"]} if "training" in spec.about else {}
    record = {"step": step, "weights": chosen(where, weights), "config": config, **before}
    return replace(spec, about={**spec.about, "training": record})


def normalised(spec: ModelSpec, params: Params, data: Mapping[str, Any]) -> Params:
    """An autoencoder's weights with the latent statistics of its training images folded in."""
    wanted = ("reader_name", "image_size", "split", "options")
    images = training_images(**{k: data[k] for k in wanted if k in data}).pixels
    batches = [images[i : i + MEASURED] for i in range(0, len(images), MEASURED)]
    return latent_norm.fold(params, *latent_norm.statistics(network(spec, "autoencoder"), params, batches))


def is_run(where: str | Path) -> bool:
    """Whether a folder holds a run rather than exported weights."""
    return holds_run(located(where))


def keep_sigmas(where: str | Path, sigmas: Sequence[Sequence[float]], sought: Mapping[str, Any] | None = None) -> None:
    """Writes noise levels of sampling into description and card of an exported model, and by what they were `sought`.

    Raises ValueError for levels that do not fall within the model's range, or a run.
    """
    if is_url(where):
        raise ValueError(f"{where} lies on an object store: copy the folder to this machine to keep noise levels in it")
    if is_run(where):
        raise ValueError(f"{where} is a run: export it first, its noise levels are kept in the exported folder")
    spec = open_model(where).spec
    about = {name: value for name, value in spec.about.items() if name != SOUGHT}
    about |= {} if sought is None else {SOUGHT: dict(sought)}
    kept = replace(spec, sigmas=tuple(tuple(map(float, levels)) for levels in sigmas), about=about)
    card = Path(where) / CARD
    if card.is_file():
        text = with_levels(card.read_text(encoding="utf-8"), Path(where).name, spec.to_json(), kept.to_json())
        folder.write_text(card, text)
    folder.write_text(Path(where) / folder.DESCRIPTION, json.dumps(kept.to_json(), indent=2) + "\n")


def takes_captions(source: str | Path, **how: str | None) -> bool:
    """Whether a run, or a model of any source, draws by captions; no weights are read. `how` is open_model's."""
    source = located(source)
    model = FlaxFolder(Path(source)) if is_run(source) else open_model(source, **how)
    return not isinstance(model.spec, EDMSpec)


def check_run(where: str | Path) -> None:
    """Raises FileNotFoundError for a folder that holds no run."""
    if not is_run(where):
        raise FileNotFoundError(f"{named(where)} holds no run: give a --run folder of launch.train")


def captioned(source: str | Path, *given: Any, **how: Any) -> Pipeline:
    """`pipeline` of a model that draws by captions; ValueError for one that draws from noise alone."""
    pipe = pipeline(source, *given, **how)
    if isinstance(pipe, EDMPipeline):
        raise ValueError(f"{named(source)} draws from noise alone: give a model that takes captions")
    return pipe


def pipeline(
    source: str | Path,
    step: int | None = None,
    weights: str = "ema",
    dtype: str | None = None,
    attention: str = "auto",
    **how: str | None,
) -> Pipeline | EDMPipeline:
    """The pipeline of a run, or of any model (source.open_model); `dtype` and what follows are Pipeline.load's."""
    given, source = source, located(source)
    if not is_run(source):
        if step is not None or weights != "ema":
            raise ValueError(f"{named(source)} is a model, no run: leave --step, --weights and --ema out")
        told = takes_captions(source, **how)
        return Pipeline.load(source, dtype, attention=attention, **how) if told else EDMPipeline.load(source)
    spec, params, step = load(source, step, weights)
    origin = {"model": str(given), "step": step, "weights": chosen(source, weights)}
    if isinstance(spec, EDMSpec):
        return EDMPipeline(spec, params, origin)
    if dtype is not None:
        cast = lambda leaf: jnp.asarray(leaf, dtype)
        spec, params = spec.computing_in(dtype), {**params, "unet": jax.tree.map(cast, params["unet"])}
        origin["dtype"] = dtype
    captions = FlaxFolder(Path(source)).captions
    return Pipeline(spec, params, origin, captions, attention=attention)
