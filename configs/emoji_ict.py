"""Improved consistency training in latent space, what configs/emoji_slct.py improves on (arXiv 2310.14189).

    python -m launch.train --config configs/emoji_ict.py --run runs/emoji_ict
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_slct


def get_config() -> ConfigDict:
    """The same network with group norms, and curriculum."""
    c = emoji_slct.get_config()
    c.model.norm = "group"
    c.objective = dict(name="ict", s1=640, steps=placeholder(int))
    return c
