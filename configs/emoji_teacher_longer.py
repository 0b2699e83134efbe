"""Trains the diffusion teacher of the emoji demo on from where it stands, warming the rate up again.

    python -m launch.train --config configs/emoji_teacher_longer.py --run runs/emoji_teacher_longer

Starts from the shipped teacher; set config.model.start to your own. Each such round lowers the loss further.
Two in three of the rows show variants (mostly skin tones) of 293 of the 1,919 things, so an epoch here visits each
thing once: a picture that stands alone is drawn as often as a person.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_teacher


def get_config() -> ConfigDict:
    """configs/emoji_teacher.py with the weights of `start` instead of fresh ones."""
    c = emoji_teacher.get_config()
    c.steps = 4000
    c.data.each = "groups"
    c.model = dict(start="emoji-teacher", dtype=placeholder(str), remat=placeholder(str))
    c.optimizer.rate = 2.5e-3
    return c
