"""The autoencoder of the emoji demo: 64 px images to 8 x 8 x 12 latents.

    python -m launch.train --config configs/emoji_autoencoder.py --run runs/emoji_autoencoder
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """config.model is a preset's name or a dict of AutoencoderConfig."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 11_000
    c.data = dict(reader_name="twemoji", image_size=64, batch_size=16)
    c.model = "emoji"
    c.objective = dict(name="autoencoder", kl_weight=1e-4, edge_weight=1.0, shift=3)
    c.optimizer = dict(name="muon", rate=4e-3, schedule="cosine", warmup=200, weight_decay=0.0, clip=1.0, accumulate=1)
    c.average = dict(ema_decay=0.998)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=1000, sample_steps=1000)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c
