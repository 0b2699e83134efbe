"""Improved latent consistency training on the emoji from nothing: no teacher, no captions (arXiv 2502.01441).

    python -m launch.encode --reader twemoji --model emoji-teacher --out data/emoji
    python -m launch.train --config configs/emoji_slct.py --run runs/emoji_slct
    python -m launch.sample --checkpoint runs/emoji_slct --n 64 --steps 2
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """4.7 M parameters on 8 x 8 x 12 latents; the curriculum goes from 10 to 640 intervals in 20,000 updates."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 20_000
    c.data = dict(folder="data/emoji", split="train", batch_size=128)
    c.model = dict(
        start="emoji-teacher", network="emoji", norm="ns_layer", dtype=placeholder(str), remat=placeholder(bool)
    )
    c.objective = dict(name="slct", steps=placeholder(int))  # of the curriculum: the run's
    # No decay, as iCT; the authors' is in configs/slct_latent32.py.
    c.optimizer = dict(name="radam", rate=1e-4, weight_decay=0.0, accumulate=1)
    c.average = dict(ema_decay=0.999)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=1000, sample_steps=1000)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c
