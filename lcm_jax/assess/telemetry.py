"""What a consistency loss on noise levels is made of: level by level, in latents and in pixels (arXiv 2502.01441)."""

import dataclasses
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lcm_jax import assembly, build_edm, run_folder, sections
from lcm_jax.diffusion.coupling import independent
from lcm_jax.diffusion.grid import LogNormalGap, Pair, PairSampler, Step
from lcm_jax.edm_pipeline import EDMPipeline
from lcm_jax.evaluate.telemetry_figure import telemetry_figure
from lcm_jax.objectives.base import Nets
from lcm_jax.objectives.consistency import Consistency
from lcm_jax.objectives.robust import Robust, StepDistance, robust
from lcm_jax.source import network
from lcm_jax.train.norm import norm
from lcm_jax.train.state import State
from lcm_jax.weights.folder import write_text

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)  # of a residual: extremes, whiskers, box, median
RESIDUALS = np.geomspace(1e-4, 10, 60)  # at which the distance is drawn
# Distances that are compared, and what makes each the m / (2 delta^2) of small residuals that Cauchy's is.
COMPARED: dict[str, Callable[[float], float]] = {
    "l2": lambda delta: 1 / (2 * delta**2),
    "pseudo_huber": lambda delta: 1 / delta,
    "cauchy": lambda delta: 1.0,
    "geman_mcclure": lambda delta: 1.0,
}


@dataclasses.dataclass(frozen=True)
class At(PairSampler):
    """One pair of noise levels for every sample."""

    t: Any
    s: Any

    def __call__(self, key: jax.Array, b: int, step: Step) -> Pair:
        return jnp.full(b, self.t), jnp.full(b, self.s)


def show(where: str | Path, out: str | Path, batches: int = 4, levels: int = 12) -> Path:
    """Writes telemetry.json and telemetry.png of a run's newest checkpoint into `out`; returns the picture."""
    run, state = run_folder.reopen(where)
    try:
        seen = measure(run, state, batches, levels)
    finally:
        run.loader.close()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "telemetry.json", json.dumps(seen, indent=1) + "\n")
    return telemetry_figure(seen, out / "telemetry.png")


def measure(run: assembly.Run, state: State, batches: int = 4, levels: int = 12) -> dict[str, Any]:
    """JSON values: loss, gradient norm, residuals at `levels` pairs of noise levels, distances, curriculum, coupling.

    The loss is the consistency part alone, of the averaged weights, a mean over `batches` batches of the run's data.
    Raises ValueError for a run whose objective compares no pairs of noise levels.
    """
    name = run.config["objective"]["name"]
    objective, start = (None, None) if sections.takes(name, "kind") else build_edm.edm_parts(run.config)
    if not isinstance(objective, Consistency):
        raise ValueError(f"objective {name!r} compares no two noise levels: nothing to show")
    step, ema = int(state.step), run.sampled(state)
    pipe = EDMPipeline(run.spec, {**run.networks, "network": ema}, read=run.read("ema"))
    given = [run.place(next(run.loader)) for _ in range(batches)]
    teacher = None
    if start.teacher is not None:
        teacher = partial(network(start.teacher.spec, "network").apply, read=run.read("teacher"))
    look = jax.jit(partial(at_levels, objective, pipe, teacher))
    found = []
    for t, s in zip(*chosen_levels(objective.pair, step, levels), strict=True):
        seen = [
            look(float(t), float(s), ema, run.networks, run.frozen, batch, jax.random.fold_in(run.key, i), step)
            for i, batch in enumerate(given)
        ]
        loss, grad, latent, pixel = (np.mean(jax.device_get(part), 0).tolist() for part in zip(*seen, strict=True))
        found.append({"t": float(t), "s": float(s), "loss": loss, "grad_norm": grad, "latent": latent, "pixel": pixel})
    total = run.config["steps"]
    drawn = sorted({0, min(step, total - 1), total - 1})
    return {
        "step": step,
        "steps": total,
        "objective": run.config["objective"],
        "quantiles": QUANTILES,
        "levels": found,
        "distance": {str(at): curve(objective.distance, run.spec.latent_shape, at) for at in drawn},
        "compared": compared(objective.distance, run.spec.latent_shape, step),
        "scale": scales(objective.distance, run.spec.latent_shape, total),
        "intervals": intervals(objective, total),
        "coupling": coupled(objective, run, given[0]),
    }


def chosen_levels(pair: PairSampler, step: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """About n pairs (t, s) from the lowest noise to the highest that the sampler compares at a step."""
    if isinstance(pair, LogNormalGap):
        t = jnp.geomspace(0.01, 80.0, n)
        return np.asarray(t), np.asarray(pair.earlier(t, step))
    N = int(pair.intervals(step))
    i = jnp.asarray(np.unique(np.linspace(0, N - 1, n).astype(int))[::-1].copy())
    return np.asarray(pair.karras.sigma(i, N)), np.asarray(pair.karras.sigma(i + 1, N))


def at_levels(objective: Consistency, pipe: EDMPipeline, teacher_apply: Callable[..., Any] | None, t, s, params,
              networks, frozen, batch, key, step) -> tuple[Array, ...]:  # fmt: skip
    """(mean loss, norm of its gradient, quantiles of the residual in latents, and in pixels of 0..255)."""
    here = dataclasses.replace(objective, pair=At(t, s))
    apply = partial(pipe.network.apply, read=pipe.read)
    teacher = None if teacher_apply is None else partial(teacher_apply, frozen["teacher"])

    def loss(online):
        nets = Nets(partial(apply, online), partial(apply, params), teacher)
        pairs = here.pairs(nets, {**batch, **frozen["batch"]}, key, step)
        losses = here.weight(pairs.t, pairs.s) * here.distance(pairs.online, pairs.target, step)
        return losses.mean(), pairs

    (value, pairs), grads = jax.value_and_grad(loss, has_aux=True)(params)
    q = jnp.asarray(QUANTILES)
    shown = [pipe.decode(networks, z) * 127.5 for z in (pairs.online, pairs.target)]
    latent, pixel = (jnp.quantile(a - b, q) for a, b in ((pairs.online, pairs.target), shown))
    return value, norm(grads), latent, pixel


def curve(distance: StepDistance, shape: tuple[int, ...], step: int, factor: float = 1.0) -> dict[str, list[float]]:
    """`factor` times the distance of two latents that differ by r in every element, and its derivative by r."""
    zero = jnp.zeros((1, *shape))
    value: Callable[[Array], Array] = lambda r: factor * distance(zero + r, zero, jnp.asarray(step))[0]
    values, slopes = jax.vmap(jax.value_and_grad(value))(jnp.asarray(RESIDUALS, jnp.float32))
    return {"residual": RESIDUALS.tolist(), "value": values.tolist(), "slope": slopes.tolist()}


def compared(distance: Robust, shape: tuple[int, ...], step: int) -> dict[str, dict[str, list[float]]] | None:
    """Curves of several distances at the scale of this one, made alike for small residuals; None as in `scales`."""
    delta = 0.0 if distance.scale is None else float(distance.scale(step, math.prod(shape)))
    if not delta:
        return None
    at = lambda name: robust(name, delta, distance.reduction)
    return {name: curve(at(name), shape, step, alike(delta)) for name, alike in COMPARED.items()}


def scales(distance: Robust, shape: tuple[int, ...], steps: int) -> dict[str, Any] | None:
    """The distance's scale (papers' c) at training steps; None for a distance without one, or where it is 0."""
    at = over(steps)
    found = [0.0 if distance.scale is None else float(distance.scale(n, math.prod(shape))) for n in at]
    return {"step": at, "delta": found} if all(found) else None


def intervals(objective: Consistency, steps: int) -> dict[str, list[int]] | None:
    """The curriculum: how many intervals the grid has at training steps."""
    if not hasattr(objective.pair, "intervals"):
        return None
    at = over(steps)
    return {"step": at, "N": [int(objective.pair.intervals(n)) for n in at]}


def over(steps: int) -> list[int]:
    """At most 200 training steps from the first to the last."""
    return np.unique(np.linspace(0, steps - 1, 200).astype(int)).tolist()


def coupled(objective: Consistency, run: assembly.Run, batch: dict[str, Array]) -> dict[str, list[float]] | None:
    """Distances |z0 - eps| of a batch as drawn and as coupled, sorted; None where noise stays as it is drawn."""
    if objective.couple is independent:
        return None
    z0 = (batch["mean"] - run.frozen["batch"]["shift"][None]) * run.frozen["batch"]["scale"][None]
    eps = jax.random.normal(run.key, z0.shape)
    away = lambda noise: np.sort(np.linalg.norm(np.asarray(z0 - noise).reshape(len(z0), -1), axis=1)).tolist()
    return {"drawn": away(eps), "coupled": away(objective.couple(z0, eps)[0])}
