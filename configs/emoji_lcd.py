"""Latent consistency distillation of the emoji teacher into a 1-4 step generator (LCM Alg. 1).

    python -m launch.train --config configs/emoji_lcd.py --run runs/emoji_lcd

Of the data that launch/quickstart.sh makes: emoji, and what the teacher draws of captions that none has.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The student starts as the teacher with a zero w projection."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 3000
    c.data = dict(folder=("data/emoji_drawn", "data/emoji"), split="train", batch_size=32)
    c.model = dict(
        teacher="emoji-teacher", start=placeholder(str), w_width=256, dtype=placeholder(str), remat=placeholder(str)
    )  # `start`: a student to go on with
    c.objective = dict(
        name="lcd", skip=20, grid="any", solver_name="ddim", distance_name="huber", delta=1e-3,
        w_min=0.0, w_max=3.0, mu=0.95, drop=0.0, weight_name="uniform",
    )  # fmt: skip
    c.optimizer = dict(
        name="adamw", rate=3e-4, schedule="cosine", warmup=100, weight_decay=0.0, b2=0.99, clip=1.0, accumulate=1
    )
    c.average = dict(ema_decay=0.99)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=500, sample_steps=500)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c
