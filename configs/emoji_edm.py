"""A denoiser of the emoji's latents, without captions: the diffusion beside consistency training, and CD's teacher.

    python -m launch.train --config configs/emoji_edm.py --run runs/emoji_edm
    python -m launch.sample --checkpoint runs/emoji_edm --n 64 --steps 18
    python -m launch.export --checkpoint runs/emoji_edm --out exported/emoji_edm
"""

from ml_collections import ConfigDict

from configs import emoji_slct


def get_config() -> ConfigDict:
    """EDM's loss (arXiv 2206.00364) on the network of configs/emoji_ict.py."""
    c = emoji_slct.get_config()
    c.model.norm = "group"
    c.objective = dict(name="edm")
    return c
