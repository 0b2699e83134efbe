"""LCM-LoRA of Stable Diffusion 1.5.

    python -m launch.encode --reader image_folder --folder PICTURES --model TEACHER --out data/sd15
    python -m launch.train --config configs/lora_sd15.py:paper --run runs/lora_sd15 \\
        --config.model.teacher=TEACHER

TEACHER is a diffusers folder, a name on the hub, a single file, or a folder of launch.export; any fine-tune of the
model does as well. Presets: paper, diffusers (configs/lcm_presets.py). launch.plan says what it takes.
"""

from ml_collections import ConfigDict

from configs import lcm_presets


def get_config(preset: str = "paper") -> ConfigDict:
    """The preset's run on latents of your own pictures."""
    return lcm_presets.adapters("stable-diffusion-v1-5/stable-diffusion-v1-5", "sd15", "data/sd15", preset)
