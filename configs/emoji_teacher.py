"""The diffusion teacher of the emoji demo: captions to 8 x 8 x 12 latents, v-prediction.

    python -m launch.train --config configs/emoji_teacher.py --run runs/emoji_teacher

Starts from the shipped autoencoder with a fresh U-Net; set config.model.start to your own.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """9.3 M parameters."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 3600
    # Whole captions and shortened ones: what a caption leaves open, the teacher has to make up.
    c.data = dict(folder=("data/emoji", "data/emoji_short"), split="train", batch_size=64)
    c.model = dict(start="emoji-teacher", unet="emoji", kind="v", dtype=placeholder(str), remat=placeholder(str))
    c.objective = dict(name="diffusion", drop=0.1, gamma=5.0)
    c.optimizer = dict(
        name="muon", rate=3e-3, schedule="cosine", warmup=200, weight_decay=0.01, b2=0.99, clip=1.0, accumulate=1
    )
    c.average = dict(ema_decay=0.999)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=500, sample_steps=1000)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c
