"""Distilling Stable Diffusion on pods that nobody rented: memory, operations, messages and time, by the TPU's compiler.

    python -m benchmarks.topologies [--configs lcd_sd15,lcd_sdxl] [--topologies v5e:4x4]

Needs libtpu (pip install -e '.[tpu]'), no TPU. Every report is launch.plan's; one that the results have is not made
again, so that it may be interrupted. On two cores they take 4 to 11 minutes each, SDXL's up to 32.
Of SDXL one block of each kind is compiled; how far such a report is from one whose passes are compiled whole is said
of Stable Diffusion 1.5.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from benchmarks import results

ROOT = Path(__file__).parents[1]
# Samples of each chip: what fits, and no more than a sensible global batch.
SAMPLES = {
    "lcd_sd15": {"v5e:4x4": 4, "v5e:16x16": 1, "v5p:4x4x4": 4},
    "lcd_sd21_768": {"v5e:4x4": 2, "v5e:16x16": 1, "v5p:4x4x4": 4},
    "lcd_sdxl": {"v5e:4x4": 1, "v5e:16x16": 1, "v5p:4x4x4": 2},
}
METHODS = {"lcd_sd15": "parts", "lcd_sd21_768": "parts", "lcd_sdxl": "composed"}
CHECKED = "lcd_sd15", "v5e:4x4"
CHIPS = {"v5e:4x4": 16, "v5e:16x16": 256, "v5p:4x4x4": 64}
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", default=",".join(SAMPLES))
    parser.add_argument("--topologies", default=",".join(CHIPS))
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--again", action="store_true", help="make the reports again that the results have")
    parser.add_argument("--name", default="topologies")
    args = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # the compiler is launch.plan's
    found = results.kept(args.name)
    if found.get("preset") != args.preset:
        found = {"preset": args.preset, "composition": None, "reports": {}}
    wanted = [(config, on) for on in args.topologies.split(",") for config in args.configs.split(",")]
    for config, on in wanted:
        name = f"{config} on {on}"
        if args.again or name not in found["reports"]:
            found["reports"][name] = report(config, on, args.preset, METHODS[config])
            results.save(args.name, found, show=False)
    if CHECKED in wanted and (args.again or found["composition"] is None):
        composed = report(*CHECKED, args.preset, "composed")
        found["composition"] = composition(composed, found["reports"][" on ".join(CHECKED)])
        results.save(args.name, found, show=False)
    print(table(found["reports"]))


def composition(composed: dict[str, Any], parts: dict[str, Any]) -> dict[str, float]:
    """What a composed report says over what one of whole passes says."""
    sent = lambda said: sum(kind["sent"] for kind in said["traffic"].values())
    operations = lambda said: sum(said["memory"]["runs"][n] * p["flops"] for n, p in said["memory"]["programs"].items())
    extra = {name: size / parts["memory"]["extra"][name] for name, size in composed["memory"]["extra"].items()}
    return {
        "peak": composed["peak"] / parts["peak"],
        **{f"{name}, beside what stays": share for name, share in extra.items()},
        "operations": operations(composed) / operations(parts),
        "sent": sent(composed) / sent(parts),
        "accessed": composed["accessed"] / parts["accessed"],
    }


def report(config: str, on: str, preset: str, method: str) -> dict[str, Any]:
    """What launch.plan says of a config on a topology."""
    batch = SAMPLES[config][on] * CHIPS[on]
    print(f"{config} on {on}, {batch} samples a step", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "plan.json"
        flags = [f"--config=configs/{config}.py:{preset}", f"--topology={on}", f"--config.data.batch_size={batch}"]
        call = [sys.executable, "-m", "launch.plan", *flags, f"--compile={method}", f"--json={said}"]
        subprocess.run(call, cwd=ROOT, check=True)
        return json.loads(said.read_text(encoding="utf-8"))


def table(found: dict[str, dict[str, Any]]) -> str:
    """One line a report."""
    lines = [
        "| run, compiled | samples a step | GiB a chip: stays, peak | TFLOP a sample | sent by a chip a step, GiB | "
        "samples/s at best | bound by |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, said in found.items():
        sent = sum(kind["sent"] for kind in said["traffic"].values()) / GIB
        peak = "does not fit" if not said["fits"] else f"{said['peak'] / GIB:.1f}"
        each, how = said["flops"] / said["batch_size"] / 1e12, said["memory"]["method"]
        lines.append(
            f"| {name}, {how} | {said['batch_size']} | {said['held'] / GIB:.1f}, {peak} | {each:.1f} | {sent:.1f} | "
            f"{said['samples_per_second']:.0f} | {said['seconds']['bound']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
