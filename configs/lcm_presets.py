"""What the paper did and what diffusers' scripts do, side by side; configs/lcd_sd15.py and its kin take one by name.

    setting        paper (arXiv 2310.04378)     diffusers (its example scripts' README commands)
    w              [2, 14]                      [5, 15], SDXL [3, 15]
    mu             0.999943                     0.95
    rate           8e-6                         1e-6
    batch          72 (768 px: 16)              12, SDXL 24
    updates        100,000                      1,000, SDXL 3,000
    lcf_sd         30,000 updates               1,000 updates
    distance       l2                           Huber, delta 1e-3
    times          any t >= 20                  the 50 times 20 i - 1
    lora_*         w = 7.5, rate 1e-4           w as above, rate 1e-4

Adapters are of rank 64; their student is not told w and is its own target.

The paper's batch divides over 8, 12, 24, 36 or 72 devices: a pod wants another, such as
--config.data.batch_size=64 on 16 or 64 chips, 256 on 256; README's "From a laptop to a pod" says what fits where.

w is LCM's, cond + w (cond - uncond): others' guidance scale is w + 1. The LoRA rate of the paper is from memory of
its authors' release, everything else as published; the 4,000 updates often quoted are those of the Dreamshaper model
that its authors released. diffusers has no script for LCF: it is trained as LCD is.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

PAPER = dict(
    w=(2.0, 14.0), mu=0.999943, rate=8e-6, batch=72, steps=100_000, distance="l2", grid="any", lora_w=(7.5, 7.5)
)
DIFFUSERS = dict(
    w=(5.0, 15.0), mu=0.95, rate=1e-6, batch=12, steps=1_000, distance="huber", grid="fixed", lora_w=(5.0, 15.0)
)
PRESETS = {"paper": PAPER, "diffusers": DIFFUSERS}
XL = {"diffusers": dict(w=(3.0, 15.0), batch=24, steps=3_000, lora_w=(3.0, 15.0))}
LORA_RATE, RANK = 1e-4, 64


def named(preset: str, xl: bool = False) -> dict:
    """The values of a preset."""
    if preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; write CONFIG:{' or CONFIG:'.join(PRESETS)}")
    return PRESETS[preset] | (XL.get(preset, {}) if xl else {})


def distillation(teacher: str, family: str, data: str, preset: str) -> ConfigDict:
    """Every U-Net weight is trained, and the student is told w."""
    values = named(preset, family == "sdxl")
    c = _common(values, data)
    c.model = dict(
        teacher=teacher, family=family, variant=placeholder(str), kind=placeholder(str),
        empty_caption=placeholder(str), w_width=256,
        dtype="bfloat16", teacher_dtype="bfloat16", remat="block", attention="auto",
    )  # fmt: skip
    low, high = values["w"]
    c.objective = dict(
        name="lcd", skip=20, grid=values["grid"], solver_name="ddim", distance_name=values["distance"], delta=1e-3,
        w_min=low, w_max=high, mu=values["mu"], drop=0.0,
    )  # fmt: skip
    c.optimizer = _optimizer(values["rate"])
    return c


def adapters(teacher: str, family: str, data: str, preset: str) -> ConfigDict:
    """LCM-LoRA: adapters alone are trained; the teacher is the same network without them, held once."""
    values = named(preset, family == "sdxl")
    c = _common(values, data)
    c.model = dict(
        teacher=teacher, family=family, variant=placeholder(str), kind=placeholder(str),
        empty_caption=placeholder(str),
        dtype="bfloat16", teacher_dtype="bfloat16", remat="block", attention="auto",
        lora=dict(rank=RANK, alpha=RANK, targets=placeholder(tuple)),  # None: what LCM-LoRA adapts
    )  # fmt: skip
    low, high = values["lora_w"]
    c.objective = dict(
        name="lcd", skip=20, grid=values["grid"], solver_name="ddim", distance_name=values["distance"], delta=1e-3,
        w_min=low, w_max=high, w_width=None, mu=None, drop=0.0,
    )  # fmt: skip
    c.optimizer = _optimizer(LORA_RATE)
    return c


def _common(values: dict, data: str) -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.steps = values["steps"]
    c.data = dict(folder=data, split="train", batch_size=values["batch"])
    c.average = dict(ema_decay=0.9999)
    # No dim of some of Stable Diffusion's convolutions (320, 640) divides over more than 64 devices.
    c.mesh = dict(data=-1, fsdp=-1, fsdp_most=64, tensor=1, slices=placeholder(int), rules="fsdp")
    c.loop = dict(log_steps=50, checkpoint_steps=500, sample_steps=1000)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c


def _optimizer(rate: float) -> dict:
    return dict(
        name="adamw", rate=rate, schedule="constant", warmup=500, weight_decay=0.0, clip=1.0, accumulate=1
    )
