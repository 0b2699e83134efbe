"""Latent consistency fine-tuning of a distilled emoji model on flags alone, without a teacher (LCM Alg. 4).

    python -m launch.train --config configs/emoji_flags_lcf.py --run runs/flags --config.model.start=EXPORTED_LCM
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """`start` is an exported LCM; the subset keeps the held-out tenth of all emoji apart."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 600
    c.data = dict(folder="data/emoji", split="train", tag="flag", batch_size=32)
    c.model = dict(start="exported/emoji_lcm")
    # The times of the quick start's student; at 8 of them a caption with one picture leaves nothing to blur.
    c.objective = dict(
        name="lcf", skip=125, grid="fixed", distance_name="huber", delta=1e-3, w_min=0.0, w_max=2.0, mu=None
    )
    c.optimizer = dict(name="muon", rate=5e-4, schedule="cosine", warmup=50, b2=0.99, clip=1.0)
    c.average = dict(ema_decay=0.99)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=500, sample_steps=500)
    c.checkpoint = dict(keep=2)
    return c
