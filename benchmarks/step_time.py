"""Speed, memory and compile time of a config's training step, and its share of time waiting for data.

    python -m benchmarks.step_time --config configs/emoji_lcd.py [--set data.batch_size=64 ...] [--steps 60]

The matrix-product ceiling is measured in the same process, so achieved GFLOP/s can be read against it.
"""

import argparse
import importlib.util
import resource
import statistics
import time

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from benchmarks import results
from lcm_jax import assembly, build
from lcm_jax.flops import flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", nargs="*", default=[], help="section.key=value changes of the config")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--name", default="step_time")
    args = parser.parse_args()
    config = load_config(args.config, args.set)
    results.save(args.name, {"config": args.config, "set": args.set, **measure(build.run(config), args.steps)})


def measure(run: assembly.Run, steps: int) -> dict:
    """Times one run: compile, then `steps` steps fed by the real loader, a step always in flight."""
    state = run.init()
    batch = run.place(next(run.loader))
    begun = time.perf_counter()
    compiled = run.step.lower(state, run.frozen, batch, run.key).compile()
    compile_seconds = time.perf_counter() - begun
    work = flops(run.step, state, run.frozen, batch, run.key)
    analysis = compiled.memory_analysis()
    state, metrics = compiled(state, run.frozen, batch, run.key)
    jax.block_until_ready(metrics)

    alone = []  # the step by itself, on a batch that is there
    for _ in range(steps):
        begun = time.perf_counter()
        state, metrics = compiled(state, run.frozen, batch, run.key)
        jax.block_until_ready(metrics)
        alone.append(time.perf_counter() - begun)

    waiting, begun, before = 0.0, time.perf_counter(), None  # as in the loop: one step ahead of the numbers
    for _ in range(steps):
        asked = time.perf_counter()
        host = next(run.loader)
        waiting += time.perf_counter() - asked
        state, metrics = compiled(state, run.frozen, run.place(host), run.key)
        if before is not None:
            jax.block_until_ready(before)
        before = metrics
    jax.block_until_ready(before)
    spent = time.perf_counter() - begun

    ceiling = matmul_ceiling()
    size = run.config["data"]["batch_size"]
    seconds = statistics.median(alone)
    return {
        "batch_size": size,
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "compile_seconds": compile_seconds,
        "step_seconds_median": seconds,
        "step_seconds_p90": sorted(alone)[int(0.9 * len(alone))],
        "images_per_second": size / seconds,
        "images_per_second_with_loader": size * steps / spent,
        "data_wait_share": waiting / spent,
        "gflop_per_step": work / 1e9,
        "gflops_achieved": work / seconds / 1e9,
        "gflops_matmul_ceiling": ceiling,
        "share_of_ceiling": work / seconds / 1e9 / ceiling,
        "temporaries_mb": analysis.temp_size_in_bytes / 1e6 if analysis else None,
        "arguments_mb": analysis.argument_size_in_bytes / 1e6 if analysis else None,
        "peak_memory_mb": peak_memory_mb(),
    }


def matmul_ceiling(n: int = 2048, repeats: int = 9) -> float:
    """GFLOP/s of a float32 n x n matrix product, the best of `repeats`."""
    a = jnp.ones((n, n))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(product(a))
        times.append(time.perf_counter() - begun)
    return 2 * n**3 / min(times) / 1e9


def peak_memory_mb() -> float:
    """Peak of the accelerator's memory where it says, of this process otherwise."""
    stats = jax.local_devices()[0].memory_stats()
    return (stats["peak_bytes_in_use"] if stats else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e6


def load_config(path: str, changes: list[str] = ()) -> ConfigDict:
    """The config of a file with `section.key=value` changes, typed as what they replace."""
    spec = importlib.util.spec_from_file_location("experiment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    for change in changes:
        name, _, value = change.partition("=")
        config.update_from_flattened_dict({name: type_like(config, name, value)})
    return config


def type_like(config: ConfigDict, name: str, value: str) -> object:
    """`value` as the type of the config's entry `name`."""
    for part in name.split("."):
        config = config[part]
    return type(config)(value)


if __name__ == "__main__":
    main()
