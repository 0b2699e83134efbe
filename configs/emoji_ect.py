"""Easy consistency tuning of the denoiser of configs/emoji_edm.py: no teacher in the step (arXiv 2406.14548).

    python -m launch.train --config configs/emoji_ect.py --run runs/emoji_ect
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_slct


def get_config() -> ConfigDict:
    """The gap halves eight times in the run."""
    c = emoji_slct.get_config()
    c.model = dict(start="exported/emoji_edm", dtype=placeholder(str), remat=placeholder(bool))
    c.objective = dict(name="ect", stage_steps=2500)
    return c
