"""A small teacher in Stable Diffusion's own latent space (TAESD's), on 1,648 Noto emoji of 128 pixels.

    git clone --depth 1 https://github.com/googlefonts/noto-emoji
    python -m launch.convert --taesd_encoder taesd_encoder.safetensors --taesd_decoder taesd_decoder.safetensors \\
        --size 128 --out exported/taesd
    python -m launch.encode --reader noto --folder noto-emoji/png/128 --model exported/taesd --out data/noto
    python -m launch.train --config configs/noto_teacher.py --run runs/noto_teacher
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """4.2 M parameters, 16 x 16 x 4 latents, v-prediction."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 1200
    c.data = dict(folder="data/noto", split="train", batch_size=32)
    c.model = dict(start="exported/taesd", unet="noto", kind="v", dtype=placeholder(str), remat=placeholder(str))
    c.objective = dict(name="diffusion", drop=0.1, gamma=5.0)
    c.optimizer = dict(
        name="muon", rate=3e-3, schedule="cosine", warmup=100, weight_decay=0.01, b2=0.99, clip=1.0, accumulate=1
    )
    c.average = dict(ema_decay=0.998)
    c.mesh = dict(data=-1, fsdp=1, tensor=1, slices=placeholder(int), rules="replicate")
    c.loop = dict(log_steps=50, checkpoint_steps=200, sample_steps=400)
    c.checkpoint = dict(keep=2, best_metric=placeholder(str), best_mode="min")
    return c
