"""Latent consistency distillation of the Noto teacher; launch.export --format diffusers takes it to PyTorch.

    python -m launch.export --checkpoint runs/noto_teacher --out exported/noto_teacher
    python -m launch.train --config configs/noto_lcd.py --run runs/noto_lcd
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import quickstart


def get_config() -> ConfigDict:
    """The quick start's recipe, in another latent space."""
    c = quickstart.get_config()
    c.data = dict(folder="data/noto", split="train", batch_size=32)
    c.model = dict(teacher="exported/noto_teacher", w_width=256, dtype=placeholder(str), remat=placeholder(str))
    c.steps = 250
    return c
