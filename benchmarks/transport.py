"""What optimal-transport coupling costs: alone at several batch sizes, and as a share of an sLCT training step.

    python -m benchmarks.transport [--batch-size 128] [--rounds 9]

Random latents of 8 x 8 x 12 numbers and the "emoji" U-Net of presets.ADMS. Steps with and without coupling take
turns, so that a busy machine slows both alike.
"""

import argparse
import statistics
import time
from dataclasses import replace

import jax
import jax.numpy as jnp

from benchmarks import results
from lcm_jax.diffusion.coupling import OptimalTransport, independent
from lcm_jax.models.adm import adm
from lcm_jax.models.presets import ADMS
from lcm_jax.objectives import slct
from lcm_jax.train.optimizer import optimizer
from lcm_jax.train.step import init_state, train_step

SIZES = (32, 128, 512)
AUCTION_UP_TO = 128  # a large one takes minutes on a CPU


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    alone = [row for b in SIZES for row in coupling_alone(b, args.rounds)]
    results.save("transport", {"alone": alone, "step": in_the_step(args.batch_size, args.rounds)})


def latents(b: int, seed: int = 0) -> jax.Array:
    return 0.5 * jax.random.normal(jax.random.key(seed), (b, 8, 8, 12))


def median_seconds(run, rounds: int) -> float:
    """Median of `rounds` calls after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - begun)
    return statistics.median(times)


def coupling_alone(b: int, rounds: int) -> list[dict]:
    """The searches on one batch, with the cost they reach."""
    rows = []
    x, n = latents(b), jax.random.normal(jax.random.key(1), (b, 8, 8, 12))
    searches = [("exact", OptimalTransport(exact_up_to=b)), ("auction", OptimalTransport(exact_up_to=0))]
    for method, couple in searches if b <= AUCTION_UP_TO else searches[:1]:
        jitted = jax.jit(couple)
        gain = float(jitted(x, n)[1]["transport_gain/mean"])
        seconds = median_seconds(lambda jitted=jitted: jitted(x, n), rounds)
        rows.append({"batch_size": b, "method": method, "seconds_median": seconds, "share_of_cost_saved": gain})
        print(f"{b:5d} {method:8s} {1e3 * seconds:9.2f} ms, {100 * gain:.2f} % of the cost saved", flush=True)
    return rows


def in_the_step(b: int, rounds: int) -> dict:
    """Seconds of a training step without coupling, with it over the batch and in four parts."""
    net, tx = adm(ADMS["emoji"]), optimizer("radam", 1e-4)
    whole = slct.build(steps=1000)
    variants = {
        "independent": replace(whole, couple=independent),
        "exact": whole,
        "exact in 4 parts": slct.build(steps=1000, transport_parts=4),
        "auction": replace(whole, couple=OptimalTransport(exact_up_to=0)),
    }
    batch = {"mean": latents(b), "std": jnp.zeros((b, 8, 8, 12))}
    frozen, key = {"teacher": None, "batch": {"scale": jnp.ones(())}}, jax.random.key(2)
    steps, states = {}, {}
    params = net.init(jax.random.key(0))
    for name, objective in variants.items():
        states[name] = init_state(params, tx, objective)
        steps[name] = jax.jit(train_step(objective, net.apply, None, tx), donate_argnums=0)
    times = {name: [] for name in variants}
    for _ in range(rounds + 1):  # the first compiles
        for name, step in steps.items():
            begun = time.perf_counter()
            states[name], metrics = step(states[name], frozen, batch, key)
            jax.block_until_ready(metrics)
            times[name].append(time.perf_counter() - begun)
    medians = {name: statistics.median(seconds[1:]) for name, seconds in times.items()}
    plain = medians["independent"]
    return {
        "batch_size": b,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "step_seconds_median": medians,
        "share_of_step": {name: 1 - plain / seconds for name, seconds in medians.items() if name != "independent"},
    }


if __name__ == "__main__":
    main()
