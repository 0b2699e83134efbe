"""The same small networks in PyTorch, run on the same numbers (needs torch and diffusers)."""

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from golden import cases


def unet_output(name: str, dtype=torch.float64) -> np.ndarray:
    """diffusers' answer, NHWC; in float64 of `cases.sinusoids`, since its own are float32 whatever the dtype."""
    net, inputs = _filled(UNet2DConditionModel(**cases.UNETS[name][1]), dtype), cases.unet_inputs(name)
    if dtype == torch.float64:
        for proj in filter(None, (net.time_proj, getattr(net, "add_time_proj", None))):
            width = proj.num_channels
            proj.forward = lambda t, width=width: torch.tensor(cases.sinusoids(t.numpy(), width))
    real = {k: torch.tensor(v, dtype=dtype) for k, v in inputs.items()}
    added = {"text_embeds": real["pooled"], "time_ids": real["time_ids"]} if "pooled" in real else None
    with torch.no_grad():
        out = net(
            real["z"].permute(0, 3, 1, 2),
            torch.tensor(inputs["t"]),
            real["context"],
            timestep_cond=real.get("w_features"),
            added_cond_kwargs=added,
        ).sample
    return out.permute(0, 2, 3, 1).numpy()


def autoencoder_outputs(name: str, dtype=torch.float64) -> dict[str, np.ndarray]:
    """diffusers' moments and image, NHWC."""
    net, inputs = _filled(AutoencoderKL(**cases.AUTOENCODERS[name][1]), dtype), cases.autoencoder_inputs(name)
    image, z = (torch.tensor(inputs[k], dtype=dtype).permute(0, 3, 1, 2) for k in ("image", "z"))
    with torch.no_grad():
        outputs = {"moments": net.encode(image).latent_dist.parameters, "image": net.decode(z).sample}
    return {k: v.permute(0, 2, 3, 1).numpy() for k, v in outputs.items()}


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the published network behind a preset; nothing is allocated."""
    with torch.device("meta"):
        if name in cases.PUBLISHED_UNETS:
            net = UNet2DConditionModel(**cases.PUBLISHED_UNETS[name])
        else:
            net = AutoencoderKL(**cases.PUBLISHED_AUTOENCODERS[name])
    return shapes(net)


def shapes(net: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of a module's tensors."""
    return {k: tuple(v.shape) for k, v in net.state_dict().items()}


def _filled(net: torch.nn.Module, dtype) -> torch.nn.Module:
    tensors = cases.fill(shapes(net))
    net = net.to(dtype)  # before the values come in: a float32 module would round them
    net.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
    return net.eval()
