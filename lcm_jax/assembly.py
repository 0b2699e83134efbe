"""A run put together: mesh, optimiser, step and state around an objective and what it trains."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lcm_jax.data.loader import Loader
from lcm_jax.models.encoder_sketch import alike, sketch
from lcm_jax.models.functional import Net
from lcm_jax.objectives import base
from lcm_jax.parallel import rules
from lcm_jax.parallel.reading import Reading, readings
from lcm_jax.parallel.transfer import fetch, place_array, place_batch, replicate
from lcm_jax.sections import average_names, computes_in, mesh_of, optimizer_of
from lcm_jax.source import Model, Place, Spec
from lcm_jax.train.state import State
from lcm_jax.train.step import Step, init_state, train_step
from lcm_jax.typing import Params
from lcm_jax.weights.bijection import flatten

log = logging.getLogger(__name__)
FIRST_WEIGHTS = 0x1417  # folded into the run's key for initialisation, apart from every step's fold
LATENTS = ("mean", "std")  # entries of a batch, as are the names of a condition


@dataclass(frozen=True)
class Run:
    """Everything the loop needs."""

    spec: Spec
    networks: dict[str, Params]  # what the trained network is exported with and does not train
    trains: str  # "unet", "network", "autoencoder" or "lora": adapters of a U-Net
    reads: tuple[str, ...]  # the entries of a batch that go to the device
    loader: Loader
    mesh: Mesh
    step: Step  # jitted, state donated
    init: Callable[[], State]  # sharded where the rules say
    abstract: State  # the same, nothing allocated, shardings attached
    frozen: Any
    key: jax.Array
    config: dict[str, Any]
    model: Model | None = None  # what it went on from, for what else belongs to it: text encoders, tokenizers
    weights: Callable[[Params, Any], Params] | None = None  # (trained, frozen) -> the network's parameters
    readings: Mapping[str, Reading] = field(default_factory=dict)  # of weights in parts, by tree (parallel.reading)

    def place(self, batch: Mapping[str, Any]) -> dict[str, jax.Array]:
        """A host batch as global arrays on the mesh, without what the step does not read."""
        return place_batch({k: v for k, v in batch.items() if k in self.reads}, self.mesh)

    def sampled(self, state: State) -> Params:
        """The average that samples are drawn with: the first."""
        names = average_names(self.config)
        return state.ema if len(names) == 1 else state.ema[names[0]]

    def read(self, tree: str) -> Reading | None:
        """How layers read the weights of a tree (parallel.rules.TREES); None: as they are."""
        return self.readings.get(tree)

    def describe_batch(self, index: np.ndarray) -> list[dict[str, Any]]:
        """Key and caption of each row of a global batch, for the record a failed step leaves; all processes call it."""
        index = fetch(place_batch({"index": index}, self.mesh)["index"])
        return [{"key": (row := self.loader.row(i)).key, "caption": row.caption} for i in index]


def assemble(
    cfg: dict[str, Any],
    spec: Spec,
    networks: dict[str, Params],
    trains: str,
    reads: tuple[str, ...],
    loader: Loader,
    objective: base.Objective,
    net: Net,
    first: Callable[[], Params] | None,
    frozen: Any,
    teacher_apply: Callable[..., Any] | None,
    model: Model | None = None,
    weights: Callable[[Params, Any], Params] | None = None,
    prepare: Callable[[Any, Any], Any] | None = None,
) -> Run:
    """Mesh, optimiser, step and state around an objective and what it trains.

    `first` reads the weights to start from onto the mesh: only a run that begins calls it, and does not keep them.
    """
    mesh, rule_set = mesh_of(cfg)
    tx, read = optimizer_of(cfg), readings(rule_set, mesh, computes_in(cfg))
    step = step_of(cfg, objective, net, teacher_apply, tx, weights, prepare, read)
    make = first_state(cfg, net, tx, objective)
    key = jax.random.key(cfg["seed"])
    shapes = jax.eval_shape(make, key, None)  # the same with first weights and without
    shardings = rules.infer(shapes, rule_set, mesh)
    warn_of_whole((shapes, {"teacher": frozen["teacher"]}), rule_set, mesh)
    return Run(
        spec=spec,
        networks=networks,
        trains=trains,
        reads=reads,
        loader=loader,
        mesh=mesh,
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        init=lambda: jax.jit(make, out_shardings=shardings)(
            jax.random.fold_in(key, FIRST_WEIGHTS), None if first is None else first()
        ),
        abstract=rules.with_shardings(shapes, shardings),
        frozen=frozen,
        key=replicate(key, mesh),
        config=cfg,
        model=model,
        weights=weights,
        readings=read,
    )


def step_of(
    cfg: Mapping[str, Any],
    objective: base.Objective,
    net: Net,
    teacher_apply: Callable[..., Any] | None,
    tx: Any,
    weights: Callable[[Params, Any], Params] | None,
    prepare: Callable[[Any, Any], Any] | None,
    read: Mapping[str, Reading],
) -> Step:
    """The step of a config, to be jitted."""
    return train_step(
        objective,
        net.apply,
        teacher_apply,
        tx,
        accumulate=cfg["optimizer"].get("accumulate", 1),
        weights=weights,
        prepare=prepare,
        readings=read,
        **cfg["average"],
    )


def first_state(
    cfg: Mapping[str, Any], net: Net, tx: Any, objective: base.Objective
) -> Callable[[jax.Array, Params | None], State]:
    """(key, first weights) -> the state before the first step; what has no first weights is drawn."""
    names = average_names(cfg)
    return lambda key, first: init_state(overlay(net.init(key), first or {}), tx, objective, names)


def overlay(fresh: Params, start: Params) -> Params:
    """`fresh` with every leaf that `start` has taken from there: the w projection alone stays as drawn, zero."""
    return {
        k: overlay(v, start.get(k, {})) if isinstance(v, Mapping) else start.get(k, v)
        for k, v in fresh.items()
    }


def warn_of_whole(trees: Sequence[Any], rule_set: Mapping[str, str], mesh: Mesh) -> None:
    """Says which large tensors every device holds whole though the rules mean to split them."""
    whole = {path: size for tree in trees for path, size in rules.left_whole(tree, rule_set, mesh).items()}
    if whole:
        sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
        log.warning(
            "config.mesh.rules leave %.2f GiB whole on each of %d devices: no dim divides over the axes (%s): %s",
            sum(whole.values()) / 2**30, mesh.size, sizes, ", ".join(rules.named_whole(whole)),
        )  # fmt: skip


def placer(abstract: Params, rule_set: str | rules.Rules, mesh: Mesh, dtype: str) -> Place:
    """(path, array) -> the array on the mesh in `dtype`, sharded by the rules, one tensor in host memory at a time."""
    shardings = flatten(rules.infer(abstract, rule_set, mesh))
    return lambda path, array: place_array(np.asarray(array).astype(jnp.dtype(dtype)), shardings[path])


def check_latents(loader: Loader, autoencoder: Params) -> None:
    """Raises ValueError where another autoencoder made the latents; sets that do not say which made them pass."""
    own = sketch(autoencoder)
    for folder, made in zip(loader.rows.folders, loader.rows.manifests, strict=True):
        if made.sketch and not alike(made.sketch, own):
            raise ValueError(
                f"latents of {folder} were made by another autoencoder than the model's: encode them again with it, or "
                "start from the model that made them"
            )


def owing(spec: Spec, attributions: Iterable[str | None]) -> Spec:
    """The spec with all whom its pictures are owed to noted, each once."""
    before = spec.about.get("attribution", ())
    owed = list(dict.fromkeys([*before, *filter(None, attributions)]))
    if len(owed) == len(before):
        return spec
    return dataclasses.replace(spec, about={**spec.about, "attribution": owed})
