"""The distillation of launch/quickstart.sh: configs/emoji_lcd.py cut to a few minutes on two cores."""

from ml_collections import ConfigDict

from configs import emoji_lcd


def get_config() -> ConfigDict:
    """Far steps and a target that follows closely: what t = T - 1 must know passes T / skip targets first."""
    c = emoji_lcd.get_config()
    c.steps = 600
    c.objective.update(skip=50, mu=0.9)
    c.optimizer = dict(name="muon", rate=5e-4, schedule="cosine", warmup=30, b2=0.99, clip=1.0)
    c.loop = dict(log_steps=20, checkpoint_steps=200, sample_steps=300)
    return c
