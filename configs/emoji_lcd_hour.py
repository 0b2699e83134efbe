"""The distillation of launch/quickstart.sh with an hour on two cores, or minutes on a GPU.

    python -m launch.synthesize --model emoji-teacher --reader twemoji --recombined 8192 --steps 10 --w 0 \\
        --out data/emoji_drawn_more
    python -m launch.train --config configs/emoji_lcd_hour.py --run runs/hour
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
    """3,000 updates of Muon, whose time is a smaller matter here, over four times the captions."""
    c = quickstart.get_config()
    c.steps = 3000
    c.data.folder = ("data/emoji_drawn_more", "data/emoji")
    c.optimizer.update(name="muon", rate=2e-4, warmup=50)
    c.average.ema_decay = 0.99
    c.loop = dict(log_steps=20, checkpoint_steps=500, sample_steps=500)
    return c
