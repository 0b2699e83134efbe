"""Says what a run takes on machines that are not rented yet: memory, operations, messages, time, whether it fits.

    python -m launch.plan --config configs/lcd_sdxl.py:paper --topology v5p:4x4x4 --config.data.batch_size=64
    python -m launch.plan --config configs/emoji_lcd.py --topology v5e:2x2 --compile whole --json plan.json

Neither weights, data nor chips have to be there. With libtpu (pip install -e '.[tpu]') a step is compiled for TPUs
without one; elsewhere memory is estimated. config.mesh.slices is the number of slices of that topology.
"""

import json
import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch import entry

CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment file.", lock_config=True)
TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:16x16, v5p:4x4x4, v6e:4x4, gpu:8xH100 or cpu:8.")
COMPILE = flags.DEFINE_enum(
    "compile", None, ["whole", "parts", "composed", "none"],
    "Compile the step, or its parts apart (less time and memory of the host), or of those one block of each kind (less "
    "again; for Stable Diffusion), or estimate; by default the step if it has at most 300 M trained parameters.",
)  # fmt: skip
EFFORT = flags.DEFINE_float(
    "effort", None, "Of the compiler for speed, -1 to 1: less is quicker, and such programs take more memory as a "
    "rule; by default 0 (what runs compile with) for the step, -1 for its parts.", -1.0, 1.0,
)  # fmt: skip
JSON = flags.DEFINE_string("json", None, "File for the numbers, with versions and date.")
TENSORS = flags.DEFINE_bool("tensors", False, "List every trained tensor: shape, dtype, size, how it is split.")
flags.mark_flag_as_required("config")
flags.mark_flag_as_required("topology")


def main() -> None:
    if not entry.accelerated():  # there is no TPU to be asked what it is; any answer keeps libtpu from complaining
        told = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}
        told["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # its lock is for those who would use a TPU
        os.environ |= {**told, **os.environ}
    from lcm_jax import plan_report

    on = plan_report.named(TOPOLOGY.value, CONFIG.value)
    entry.simulate(on.count)
    found = plan_report.forecast(CONFIG.value, on, COMPILE.value, entry.compiled().parent / "plans", EFFORT.value)
    if TENSORS.value:
        print(found.plan.tensors(), end="\n\n")
    print("\n".join(found.lines()))
    if JSON.value is not None:
        Path(JSON.value).write_text(json.dumps(found.record(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    entry.run(main)
