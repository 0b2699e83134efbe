"""Emoji by class: improved latent consistency training that is told Unicode's nine categories.

    python -m launch.encode --reader twemoji --options label=category --model emoji-teacher --out data/emoji_classes
    python -m launch.train --config configs/emoji_classes.py --run runs/emoji_classes
    python -m launch.sample --checkpoint runs/emoji_classes --label "Food & Drink" --steps 2 [--ema 0.9999]
"""

from ml_collections import ConfigDict

from configs import emoji_slct


def get_config() -> ConfigDict:
    """The network of configs/emoji_slct.py with labels, a tenth of them left out, and three sampling averages."""
    c = emoji_slct.get_config()
    c.data.folder = "data/emoji_classes"
    c.model.classes = 9
    c.objective.label_drop = 0.1
    c.average = dict(ema_decay=(0.999, 0.9999), ema_power=0.1)
    return c
