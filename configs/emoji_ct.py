"""Consistency training as first published, beside its improvement in configs/emoji_ict.py (arXiv 2303.01469).

    python -m launch.train --config configs/emoji_ct.py --run runs/emoji_ct
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_slct


def get_config() -> ConfigDict:
    """The same network with group norms; squared distance, 2 to 150 intervals, an averaged target."""
    c = emoji_slct.get_config()
    c.model.norm = "group"
    c.objective = dict(name="ct", steps=placeholder(int))
    return c
