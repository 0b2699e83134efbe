"""How near FID here is to FID of the published network in PyTorch: features, and the distance of two small sets.

    python -m benchmarks.fid_parity [--pictures 16]

Needs PyTorch and the emoji. Half of the pictures are emoji of 256 px, half the same ones blurred; beside them a
photograph and noise. The other side is the TorchScript network on pixels resized by TensorFlow 1's rule in float64.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from benchmarks import results
from lcm_jax import data
from lcm_jax.assess.feature_networks import feature_network
from lcm_jax.data import images as pixels
from lcm_jax.evaluate.controls import blur
from lcm_jax.evaluate.feature_statistics import FeatureStatistics
from lcm_jax.evaluate.features import Features, Images, extract
from lcm_jax.evaluate.frechet import frechet_distance, moments
from lcm_jax.weights.fetch import INCEPTION, fetch

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=16)
    args = parser.parse_args()
    emoji = [e.load() for e in data.reader("twemoji")[:: 4000 // args.pictures * 2]][: args.pictures // 2]
    plain = np.stack([pixels.fit(picture, 256) for picture in emoji])
    photo = np.asarray(Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg").convert("RGB"))
    noise = np.random.default_rng(0).integers(0, 256, (2, 512, 512, 3), dtype=np.uint8)
    sets = {"emoji": plain, "emoji, blurred": blur(plain), "photograph": photo[None], "noise": noise}
    net = feature_network("inception")
    ours = {name: extract(net, images, BATCH) for name, images in sets.items()}
    theirs = {name: torch_features(images) for name, images in sets.items()}
    pair = "emoji", "emoji, blurred"
    streamed = frechet_distance(*(statistics(ours[name]).moments for name in pair))
    at_once = frechet_distance(*(moments(theirs[name]) for name in pair))
    results.save(
        "fid_parity",
        {
            "network": {"name": net.name, "hash": net.hash, "resize": net.resize},
            "features": {name: compared(ours[name], theirs[name]) for name in sets},
            "frechet": {"n": len(plain), "streamed": streamed, "of_pytorch_features": at_once},
        },
    )


def compared(ours: Features, theirs: Features) -> dict[str, Any]:
    """Relative error of each picture's features (worst), largest difference, and size of what was compared."""
    relative = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    return {
        "pictures": len(ours),
        "relative": float(relative.max()),
        "largest": float(np.abs(ours - theirs).max()),
        "largest_feature": float(theirs.max()),
    }


def torch_features(images: Images) -> Features:
    """Features of the published TorchScript network."""
    import torch

    (path,) = fetch(INCEPTION).iterdir()
    net = torch.jit.load(path).eval()
    resized = np.stack([tensorflow_1(picture.astype(np.float64)) for picture in images])
    scaled = torch.tensor((resized.transpose(0, 3, 1, 2) - 128) / 128, dtype=torch.float32)
    with torch.no_grad():
        return np.concatenate([net(scaled[i : i + BATCH]).numpy() for i in range(0, len(scaled), BATCH)])


def tensorflow_1(picture: np.ndarray, size: int = 299) -> np.ndarray:
    """Output i lies at i * old / new, between two pixels."""
    for axis in (0, 1):
        old = picture.shape[axis]
        place = np.arange(size) * old / size
        low = place.astype(int)
        share = (place - low).reshape(-1, 1, 1) if axis == 0 else (place - low).reshape(1, -1, 1)
        high = np.minimum(low + 1, old - 1)
        picture = picture.take(low, axis) * (1 - share) + picture.take(high, axis) * share
    return picture


def statistics(features: Features) -> FeatureStatistics:
    found = FeatureStatistics.none(features.shape[1])
    for start in range(0, len(features), BATCH):
        found.add(features[start : start + BATCH])
    return found


if __name__ == "__main__":
    main()
