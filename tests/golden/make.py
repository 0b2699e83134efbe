"""Writes the golden files of this folder, from torch 2.13.0 and diffusers 0.42.1.

`PYTHONPATH=tests python tests/golden/make.py`
"""

import json
from pathlib import Path

import numpy as np
from golden import cases, reference

HERE = Path(__file__).parent


def main() -> None:
    outputs = {f"unet/{name}": reference.unet_output(name) for name in cases.UNETS}
    for name in cases.AUTOENCODERS:
        for what, value in reference.autoencoder_outputs(name).items():
            outputs[f"autoencoder/{name}/{what}"] = value
    np.savez_compressed(HERE / "diffusers.npz", **outputs)

    about = {}
    for name in (*cases.PUBLISHED_UNETS, *cases.PUBLISHED_AUTOENCODERS):
        shapes = reference.published_shapes(name)
        about[name] = {
            "tensors": len(shapes),
            "parameters": sum(int(np.prod(s)) for s in shapes.values()),
            "sha256": cases.digest(shapes),
        }
    (HERE / "published.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
