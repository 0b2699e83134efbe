"""How far our U-Net of full size is from diffusers' with the same random weights, in one float32 forward pass.

    python -m benchmarks.full_size_parity [--family sd15 sd21 sdxl] [--side 64] [--threads 2]

Needs torch and diffusers. Weights are drawn in PyTorch from a seed; its answer comes first, then every tensor is handed
over by name and let go there, so memory holds one copy of the weights (3.4 GB for sd15, 10.3 GB for sdxl) and what a
forward pass takes. Exits with 1 where ||ours - theirs|| / ||theirs|| is above 1e-5.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import results
from lcm_jax.machine import machine
from lcm_jax.models.presets import UNETS, named
from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import fill
from lcm_jax.weights.diffusers_config import unet_config

LIMIT = 1e-5
TOKENS, TIME = 77, 999  # of a caption; where consistency sampling begins
NAME = "full_size_parity"


class Handed(Mapping):
    """PyTorch's tensors by name, each given away once: reading one lets go of it here."""

    def __init__(self, module: torch.nn.Module):
        self.held = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.held.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.held.pop(name).numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading it."""
        return self.shapes[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", default=["sd15"], help="presets of models.presets.UNETS")
    parser.add_argument("--side", type=int, default=64, help="of the latent")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="PyTorch's")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    file = results.FOLDER / f"{NAME}.json"
    networks = json.loads(file.read_text(encoding="utf-8"))["networks"] if file.exists() else {}
    for family in args.family:
        row = compare(named(UNETS, family), args.side, args.seed)
        print(f"{family}: relative error {row['relative_error']:.2e}", flush=True)
        networks[family] = {**row, "measured_on": machine()}
        results.save(NAME, {"limit": LIMIT, "versions": versions(), "networks": networks})
    sys.exit(any(networks[family]["relative_error"] > LIMIT for family in args.family))


def compare(cfg: UNetConfig, side: int, seed: int) -> dict[str, Any]:
    """The relative error of one forward pass at batch 1, and what it was measured with."""
    inputs = draw_inputs(cfg, side, seed)
    module = draw_module(cfg, side, seed)
    begun = time.perf_counter()
    want = theirs(module, inputs)
    their_seconds = time.perf_counter() - begun
    tensors = Handed(module)
    parameters = sum(int(np.prod(shape)) for shape in tensors.shapes.values())
    del module
    net = unet(cfg)
    params = fill(tensors, net.abstract(), lambda path, array: jnp.asarray(array))
    begun = time.perf_counter()
    got = np.asarray(jax.jit(net.apply)(params, **{name: jnp.asarray(x) for name, x in inputs.items()}))
    our_seconds = time.perf_counter() - begun
    return {
        "relative_error": float(np.linalg.norm(got - want) / np.linalg.norm(want)),
        "largest_difference": float(np.abs(got - want).max()),
        "output_rms": float(np.sqrt(np.square(want).mean())),
        "parameters": parameters,
        "tensors": len(tensors),
        "latent": list(inputs["z"].shape),
        "time": TIME,
        "seed": seed,
        "seconds_torch": their_seconds,
        "seconds_jax_with_compilation": our_seconds,
        "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def draw_inputs(cfg: UNetConfig, side: int, seed: int) -> dict[str, np.ndarray]:
    """Keywords of our U-Net."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    inputs = {"z": draw(1, side, side, cfg.latent_channels), "t": np.array([TIME])}
    inputs["context"] = draw(1, TOKENS, cfg.context_width)
    if cfg.added_width:
        inputs["pooled"] = draw(1, cfg.added_width - 6 * cfg.added_time_width)
        inputs["time_ids"] = np.array([[8 * side, 8 * side, 0, 0, 8 * side, 8 * side]], np.float32)
    return inputs


def draw_module(cfg: UNetConfig, side: int, seed: int) -> torch.nn.Module:
    """diffusers' U-Net; weights keep the size of activations, norms scale by about one, biases are small."""
    with torch.device("meta"):
        module = diffusers.UNet2DConditionModel.from_config(unet_config(asdict(cfg), side))
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.normal_(generator=generator)
            if tensor.ndim > 1:
                tensor.div_(float(np.sqrt(np.prod(tensor.shape[1:]))))
            else:
                tensor.mul_(0.1).add_(float(name.endswith("weight")))
    return module.eval()


def theirs(module: torch.nn.Module, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """The module's answer, NHWC."""
    given = {name: torch.tensor(x) for name, x in inputs.items()}
    added = {"text_embeds": given["pooled"], "time_ids": given["time_ids"]} if "pooled" in given else None
    with torch.no_grad():
        z = given["z"].permute(0, 3, 1, 2).contiguous()
        out = module(z, given["t"], given["context"], added_cond_kwargs=added).sample
    return out.permute(0, 2, 3, 1).numpy().copy()


def versions() -> dict[str, str]:
    """Of the other side; ours are in measured_on."""
    return {"torch": torch.__version__, "diffusers": diffusers.__version__}


if __name__ == "__main__":
    main()
