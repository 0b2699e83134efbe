"""Consistency distillation of the denoiser of configs/emoji_edm.py (arXiv 2303.01469).

    python -m launch.train --config configs/emoji_cd.py --run runs/emoji_cd
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_slct


def get_config() -> ConfigDict:
    """The student starts as its teacher; Heun's step on 40 noise levels."""
    c = emoji_slct.get_config()
    c.model = dict(teacher="exported/emoji_edm", dtype=placeholder(str), remat=placeholder(bool))
    c.objective = dict(name="cd")
    return c
