"""The protocol of published tables without captions: 50,000 pictures in 1 and in 2 steps against all training pictures.

    python -m launch.score --config configs/evaluation_unconditional.py --model exported/slct --data data/celeba \\
        --out scores
    python -m launch.score --config configs/evaluation_unconditional.py --model exported/edm --real PICTURES \\
        --config.steps="(18, 40)" --out scores_edm

Published of configs/slct_latent32.py at 1 and 2 steps (arXiv 2502.01441, Tab. 1): FID 7.27, 6.93 on CelebA-HQ; 8.87,
7.71 on LSUN Church; 8.72, 8.29 on FFHQ. That FID is of JPEG files by another implementation; its recall is of VGG16
features and cannot be compared.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every class of a model that is told classes has its turn."""
    c = ConfigDict()
    c.steps = (1, 2)
    c.samples = 50_000
    c.seed = 0
    c.batch = 64  # pictures drawn a call and device
    c.features = "inception"  # "inception=FOLDER" with weights of one's own
    c.manifold = 10_000  # pictures a side of which precision and recall are found (k = 3); 0: neither
    return c
