"""Latent consistency fine-tuning of a distilled emoji model to emoji in grays, without a teacher (LCM Alg. 4).

    python -m launch.encode --reader twemoji --options grayscale=true --model emoji-teacher --out data/emoji_grayscale
    python -m launch.train --config configs/emoji_grayscale_lcf.py --run runs/grayscale --config.model.start=EXPORTED
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """`start` is an LCM of launch.export; the held-out tenth of the emoji is the one its training kept apart."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 600
    c.data = dict(folder="data/emoji_grayscale", split="train", tag=placeholder(str), batch_size=32)
    c.model = dict(start="runs/quickstart/exported", dtype=placeholder(str), remat=placeholder(str))
    # The times, the weight and the w of the quick start's student. Alike weighed times lose the detail of small ones.
    c.objective = dict(
        name="lcf", skip=125, grid="fixed", distance_name="huber", delta=1e-3, w_min=0.0, w_max=1.0, mu=None,
        drop=0.0, weight_name="root_snr",
    )
    c.optimizer = dict(
        name="muon", rate=2e-4, schedule="cosine", warmup=20, weight_decay=0.0, b2=0.99, clip=1.0, accumulate=1
    )
    c.average = dict(ema_decay=0.98)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=300, sample_steps=300)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c
