"""What optimal-transport coupling costs at several batch sizes: alone, and as a share of an sLCT training step.

    python -m benchmarks.transport [--network emoji_small --dtype bfloat16 --sizes 128 512 1024 --rounds 9]

Random latents and a U-Net of presets.ADMS. Steps with and without coupling take turns, so that a busy machine slows
both alike. A search that takes long is timed less often than --rounds says, but once.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import results
from lcm_jax.diffusion.coupling import OptimalTransport, independent
from lcm_jax.flops import flops
from lcm_jax.models.adm import ADMConfig, adm
from lcm_jax.models.presets import ADMS
from lcm_jax.objectives import slct
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.step import init_state, train_step

SIZES = (128, 512, 1024)
STEPS = ("independent", "exact", "auction", "exact in 4 parts", "auction in 4 parts")
Turns = Callable[[dict[str, Callable[[], Any]]], dict[str, float]]  # by name: runs -> median seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="emoji", choices=ADMS)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", nargs="+", default=STEPS[:3], choices=STEPS, help="couplings measured in a step")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batches coupled, alone and in a step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=15.0, help="after which no more rounds are begun")
    parser.add_argument("--name", default="transport")
    args = parser.parse_args()
    if STEPS[0] not in args.steps:
        parser.error(f"--steps needs {STEPS[0]}: the others are held against it")
    config = replace(ADMS[args.network], dtype=args.dtype)
    turns = partial(take_turns, rounds=args.rounds, limit=args.seconds)
    alone = [row for b in args.sizes for row in coupling_alone(latent_shape(config, b), turns)]
    steps = [in_the_step(config, b, args.steps, turns) for b in args.sizes]
    results.save(args.name, {"network": args.network, "dtype": args.dtype, "alone": alone, "steps": steps})


def latent_shape(config: ADMConfig, b: int) -> tuple[int, ...]:
    return b, config.side, config.side, config.in_channels


def latents(shape: tuple[int, ...]) -> jax.Array:
    return 0.5 * jax.random.normal(jax.random.key(0), shape)


def take_turns(runs: dict[str, Callable[[], Any]], rounds: int, limit: float) -> dict[str, float]:
    """Median seconds of each over `rounds` turns after one that is not counted; about `limit` seconds are enough."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    begun = time.perf_counter()
    for turn in range(rounds + 1):
        if turn and time.perf_counter() - begun > limit:
            break
        for name, run in runs.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:] or seconds) for name, seconds in times.items()}


def coupling_alone(shape: tuple[int, ...], turns: Turns) -> list[dict]:
    """The searches on one batch, with the cost they reach."""
    rows, b = [], shape[0]
    x, n = latents(shape), jax.random.normal(jax.random.key(1), shape)
    for method, limit in ("exact", b), ("auction", 0):
        couple = jax.jit(OptimalTransport(exact_up_to=limit)).lower(x, n).compile()
        metrics: dict[str, Any] = {}

        def run(couple: Any = couple, metrics: dict[str, Any] = metrics) -> Any:
            metrics.update(couple(x, n)[1])
            return metrics

        seconds, gain = turns({method: run})[method], float(metrics["transport_gain/mean"])
        rows.append({"batch_size": b, "method": method, "seconds_median": seconds, "share_of_cost_saved": gain})
        print(f"{b:5d} {method:8s} {1e3 * seconds:9.2f} ms, {100 * gain:.2f} % of the cost saved", flush=True)
    return rows


def in_the_step(config: ADMConfig, b: int, names: Sequence[str], turns: Turns) -> dict:
    """Seconds of a training step by the coupling of its noise, and its operations before XLA optimises them.

    One program holds all couplings and is told which to take.
    """
    net, tx = adm(config), optimizer("radam", 1e-4)
    whole = slct.build(steps=1000)
    couplings = {
        "independent": independent,
        "exact": OptimalTransport(exact_up_to=b),
        "exact in 4 parts": OptimalTransport(4, exact_up_to=b),
        "auction": OptimalTransport(exact_up_to=0),
        "auction in 4 parts": OptimalTransport(4, exact_up_to=0),
    }
    searches = [lambda z0, eps, couple=couplings[name]: couple(z0, eps)[0] for name in names]
    batch = {"mean": latents(latent_shape(config, b)), "std": jnp.zeros(latent_shape(config, b))}
    frozen, key = {"teacher": None, "batch": {"scale": jnp.ones(())}}, jax.random.key(2)

    def step(which: Any, state: Any) -> Any:
        couple = lambda z0, eps: (jax.lax.switch(which, searches, z0, eps), {})
        return train_step(replace(whole, couple=couple), net.apply, None, tx)(state, frozen, batch, key)

    params = net.init(jax.random.key(0))
    state = jax.jit(lambda params: init_state(params, tx, whole))(params)
    compiled = jax.jit(step, donate_argnums=1).lower(0, state).compile()

    def run(which: int) -> Any:
        nonlocal state
        state, metrics = compiled(which, state)
        return metrics

    medians = turns({name: partial(run, i) for i, name in enumerate(names)})
    plain = medians["independent"]
    uncoupled = replace(whole, couple=independent)
    gflop = flops(train_step(uncoupled, net.apply, None, tx), jax.eval_shape(lambda: state), frozen, batch, key) / 1e9
    shares = {name: 1 - plain / seconds for name, seconds in medians.items() if name != "independent"}
    told = ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())
    print(f"{b:5d} in a step of {plain:.3f} s: {told}", flush=True)
    return {
        "batch_size": b,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "step_seconds_median": medians,
        "images_per_second": b / plain,
        "gflop_per_step": gflop,
        "gflops_achieved": gflop / plain,
        "share_of_step": shares,
    }


if __name__ == "__main__":
    main()
