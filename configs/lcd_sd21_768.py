"""Latent consistency distillation of Stable Diffusion 2.1 (768 px, predicts v).

    python -m launch.encode --reader image_folder --folder PICTURES --model TEACHER --out data/sd21_768
    python -m launch.train --config configs/lcd_sd21_768.py:paper --run runs/lcd_sd21_768 \\
        --config.model.teacher=TEACHER

TEACHER is a diffusers folder, a name on the hub, a single file, or a folder of launch.export; any fine-tune of the
model does as well. Presets: paper, diffusers (configs/lcm_presets.py). launch.plan says what it takes.
"""

from ml_collections import ConfigDict

from configs import lcm_presets


def get_config(preset: str = "paper") -> ConfigDict:
    """The preset's run on latents of your own pictures."""
    c = lcm_presets.distillation("stabilityai/stable-diffusion-2-1", "sd21_768", "data/sd21_768", preset)
    if preset == "paper":
        c.data.batch_size = 16  # of four times the pixels
    return c
