"""What training the published models takes: parameters, bytes a device and operations of the real steps, traced.

    python -m benchmarks.plans [--devices 8] [--configs lcd_sd15,slct_latent32:celeba]

No weights are needed and nothing runs: the steps of configs/ are traced from abstract trees. What the results have of
other configs on as many devices is kept.
"""

import argparse
import importlib
import time

from benchmarks import results
from configs import slct_latent32

CONFIGS = ("lcd_sd15", "lcd_sd21_base", "lcd_sd21_768", "lcd_sdxl", "lora_sd15", "lora_sdxl")
CONFIGS += tuple(f"slct_latent32:{name}" for name in slct_latent32.SETS)
TRAINED = "adapters", "network", "U-Net"  # what a plan calls it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--preset", default="paper", help="of configs named without one")
    args = parser.parse_args()

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    from lcm_jax import planning

    kept, found = results.kept("plans"), {}
    if (kept.get("devices"), kept.get("preset")) == (args.devices, args.preset):
        found = kept["configs"]
    print("| config | trained | GFLOP a sample | GiB a device, activations apart |\n|---|---|---|---|", flush=True)
    for name in args.configs.split(","):
        start = time.perf_counter()
        module, _, preset = name.partition(":")
        plan = planning.plan(importlib.import_module(f"configs.{module}").get_config(preset or args.preset))
        found[name] = {**plan.record(), "seconds": time.perf_counter() - start}
        trained = next(plan.parameters[part] for part in TRAINED if part in plan.parameters)
        each, held = plan.flops / plan.batch_size / 1e9, plan.held / 2**30
        print(f"| {name} | {trained / 1e6:.1f} M | {each:,.0f} | {held:.2f} |", flush=True)
    results.save("plans", {"devices": args.devices, "preset": args.preset, "configs": found})


if __name__ == "__main__":
    main()
