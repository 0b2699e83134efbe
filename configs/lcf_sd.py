"""Latent consistency fine-tuning of an LCM of Stable Diffusion 1.5 on your own pictures (LCM Alg. 4).

    python -m launch.encode --reader image_folder --folder PICTURES --model LCM --out data/mine
    python -m launch.train --config configs/lcf_sd.py:paper --run runs/mine --config.model.start=LCM

LCM is any that takes w: a folder of launch.export, diffusers' format (Dreamshaper-v7's, say) or a name on the hub.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import lcm_presets


def get_config(preset: str = "paper") -> ConfigDict:
    """w and distance must be those of the distillation; presets as there."""
    c = lcm_presets.distillation("", "sd15", "data/mine", preset)
    c.model = dict(
        start="SimianLuo/LCM_Dreamshaper_v7", family="sd15", variant=placeholder(str), kind=placeholder(str),
        empty_caption=placeholder(str), w_width=256, dtype="bfloat16", remat="block", attention="auto",
    )  # fmt: skip
    c.objective.name = "lcf"
    del c.objective.solver_name
    c.steps = 30_000 if preset == "paper" else 1_000
    return c
