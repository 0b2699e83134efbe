"""Improved latent consistency training at the size of its paper: CelebA-HQ, LSUN Church or FFHQ at 256 px.

    python -m launch.encode --folder celeba_hq_256 --options caption="a face" --options heldout=0 --text none \\
        --model models/sd-vae-ft-ema --size 256 --out data/celeba
    python -m launch.plan --config configs/slct_latent32.py:celeba --topology v5e:2x4
    python -m launch.train --config configs/slct_latent32.py:celeba --run runs/slct_celeba

Published FID at 1 and 2 steps (arXiv 2502.01441, Tab. 1): CelebA-HQ 7.27, 6.93; Church 8.87, 7.71; FFHQ 8.72, 8.29.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import emoji_slct

# Pictures (all of them are trained on: heldout=0), epochs and global batch of the paper's runs.
SETS = {"celeba": (27_000, 1400, 128), "church": (120_000, 1800, 256), "ffhq": (70_000, 1400, 128)}


def get_config(name: str = "celeba") -> ConfigDict:
    """158.4 M parameters on 32 x 32 x 4 latents of Stable Diffusion 1's autoencoder, as sd-vae-ft-ema improves it."""
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}; write slct_latent32.py:{' or :'.join(SETS)}")
    pictures, epochs, batch = SETS[name]
    c = emoji_slct.get_config()
    c.steps = pictures // batch * epochs
    c.data = dict(folder=f"data/{name}", split="train", batch_size=batch)
    c.model = dict(
        start="models/sd-vae-ft-ema", family="sd15", variant=placeholder(str), network="latent32", norm="ns_layer",
        dtype=placeholder(str), remat=placeholder(bool),
    )  # fmt: skip
    c.objective = dict(name="slct", steps=placeholder(int))  # of the curriculum: the run's
    c.optimizer.weight_decay = 1e-4  # added to the gradient before the moments, as the authors' code has it
    c.average = dict(ema_decay=(0.99993, 0.9999, 0.999))  # the first is that of the published scores
    c.loop = dict(log_steps=100, checkpoint_steps=5000, sample_steps=5000)
    return c
