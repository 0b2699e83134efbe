"""What distilling the published models takes: parameters, bytes a device and operations of the real steps, traced.

    python -m benchmarks.plans [--devices 8] [--configs lcd_sd15,lcd_sdxl]

No weights are needed and nothing runs: the steps of configs/ are traced from abstract trees.
"""

import argparse
import importlib
import time

from benchmarks import results

CONFIGS = ("lcd_sd15", "lcd_sd21_base", "lcd_sd21_768", "lcd_sdxl", "lora_sd15", "lora_sdxl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--preset", default="paper")
    args = parser.parse_args()

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", args.devices)
    from lcm_jax import planning

    found = {}
    print("| config | trained | GFLOP a sample | GiB a device, activations apart |\n|---|---|---|---|", flush=True)
    for name in args.configs.split(","):
        start = time.perf_counter()
        plan = planning.plan(importlib.import_module(f"configs.{name}").get_config(args.preset))
        found[name] = {**plan.record(), "seconds": time.perf_counter() - start}
        trained = plan.parameters.get("adapters", plan.parameters["U-Net"])
        each, held = plan.flops / plan.batch_size / 1e9, plan.held / 2**30
        print(f"| {name} | {trained / 1e6:.1f} M | {each:,.0f} | {held:.2f} |", flush=True)
    results.save("plans", {"devices": args.devices, "preset": args.preset, "configs": found})


if __name__ == "__main__":
    main()
