"""What optimal-transport coupling costs: alone at several batch sizes, and as a share of an sLCT training step.

    python -m benchmarks.transport [--network emoji --batch-size 128 --dtype bfloat16 --rounds 9]

Random latents and a U-Net of presets.ADMS. Steps with and without coupling take turns, so that a busy machine slows
both alike.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
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

SIZES = (32, 128, 512)
STEPS = ("independent", "exact", "exact in 4 parts", "auction", "auction in 4 parts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="emoji", choices=ADMS)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS, help="couplings measured in a step")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="batches coupled alone")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--name", default="transport")
    args = parser.parse_args()
    if STEPS[0] not in args.steps:
        parser.error(f"--steps needs {STEPS[0]}: the others are held against it")
    config = replace(ADMS[args.network], dtype=args.dtype)
    alone = [row for b in args.sizes for row in coupling_alone(latent_shape(config, b), args.rounds)]
    step = in_the_step(config, args.batch_size, args.steps, args.rounds)
    results.save(args.name, {"network": args.network, "dtype": args.dtype, "alone": alone, "step": step})


def latent_shape(config: ADMConfig, b: int) -> tuple[int, ...]:
    return b, config.side, config.side, config.in_channels


def latents(shape: tuple[int, ...]) -> jax.Array:
    return 0.5 * jax.random.normal(jax.random.key(0), shape)


def median_seconds(run: Callable[[], Any], rounds: int) -> float:
    """Median of `rounds` calls after one that compiles."""
    return take_turns({"": run}, rounds)[""]


def take_turns(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each over `rounds` turns after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            jax.block_until_ready(run())
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def coupling_alone(shape: tuple[int, ...], rounds: int) -> list[dict]:
    """The searches on one batch, with the cost they reach."""
    rows, b = [], shape[0]
    x, n = latents(shape), jax.random.normal(jax.random.key(1), shape)
    for method, couple in ("exact", OptimalTransport(exact_up_to=b)), ("auction", OptimalTransport(exact_up_to=0)):
        jitted = jax.jit(couple)
        gain = float(jitted(x, n)[1]["transport_gain/mean"])
        seconds = median_seconds(lambda jitted=jitted: jitted(x, n), rounds)
        rows.append({"batch_size": b, "method": method, "seconds_median": seconds, "share_of_cost_saved": gain})
        print(f"{b:5d} {method:8s} {1e3 * seconds:9.2f} ms, {100 * gain:.2f} % of the cost saved", flush=True)
    return rows


def in_the_step(config: ADMConfig, b: int, names: tuple[str, ...], rounds: int) -> dict:
    """Seconds of a training step by the coupling of its noise, and its operations before XLA optimises them."""
    net, tx = adm(config), optimizer("radam", 1e-4)
    whole = slct.build(steps=1000)
    couplings = {
        "independent": independent,
        "exact": OptimalTransport(exact_up_to=b),
        "exact in 4 parts": OptimalTransport(4, exact_up_to=b),
        "auction": OptimalTransport(exact_up_to=0),
        "auction in 4 parts": OptimalTransport(4, exact_up_to=0),
    }
    batch = {"mean": latents(latent_shape(config, b)), "std": jnp.zeros(latent_shape(config, b))}
    frozen, key = {"teacher": None, "batch": {"scale": jnp.ones(())}}, jax.random.key(2)
    params = net.init(jax.random.key(0))

    def runner(name: str) -> Callable[[], Any]:
        objective = replace(whole, couple=couplings[name])
        step = jax.jit(train_step(objective, net.apply, None, tx), donate_argnums=0)
        state = jax.jit(lambda params: init_state(params, tx, objective))(params)
        compiled = step.lower(state, frozen, batch, key).compile()

        def run() -> Any:
            nonlocal state
            state, metrics = compiled(state, frozen, batch, key)
            return metrics

        return run

    runs = {name: runner(name) for name in names}
    medians = take_turns(runs, rounds)
    plain = medians["independent"]
    uncoupled = replace(whole, couple=independent)
    state = jax.eval_shape(lambda params: init_state(params, tx, uncoupled), params)
    gflop = flops(train_step(uncoupled, net.apply, None, tx), state, frozen, batch, key) / 1e9
    return {
        "batch_size": b,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "step_seconds_median": medians,
        "images_per_second": b / plain,
        "gflop_per_step": gflop,
        "gflops_achieved": gflop / plain,
        "share_of_step": {name: 1 - plain / seconds for name, seconds in medians.items() if name != "independent"},
    }


if __name__ == "__main__":
    main()
