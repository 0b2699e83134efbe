"""Latent consistency distillation of Stable Diffusion XL.

    python -m launch.encode --reader image_folder --folder PICTURES --model TEACHER --out data/sdxl
    python -m launch.train --config configs/lcd_sdxl.py:paper --run runs/lcd_sdxl \\
        --config.model.teacher=TEACHER

TEACHER is a diffusers folder, a name on the hub, a single file, or a folder of launch.export; any fine-tune of the
model does as well. Presets: paper, diffusers (configs/lcm_presets.py). launch.plan says what it takes.
"""

from ml_collections import ConfigDict

from configs import lcm_presets


def get_config(preset: str = "paper") -> ConfigDict:
    """The preset's run on latents of your own pictures."""
    return lcm_presets.distillation("stabilityai/stable-diffusion-xl-base-1.0", "sdxl", "data/sdxl", preset)
