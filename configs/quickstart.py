"""The distillation of launch/quickstart.sh: configs/emoji_lcd.py cut to a few minutes on two cores."""

from ml_collections import ConfigDict

from configs import emoji_lcd


def get_config() -> ConfigDict:
    """Fewer and larger steps; all else is emoji_lcd's."""
    c = emoji_lcd.get_config()
    c.steps = 800
    c.loop = dict(log_steps=20, checkpoint_steps=200, sample_steps=400)
    return c
