"""Small U-Nets of Stable Diffusion's family on both sides: modules of diffusers, and ours with their weights."""

import copy
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import UNet2DConditionModel

from lcm_jax.models.unet import UNetConfig, unet
from lcm_jax.weights.bijection import from_torch, to_torch
from lcm_jax.weights.diffusers_config import unet_sizes

QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
DTYPES = {"float32": torch.float32, "float64": torch.float64}
W_WIDTH, POOLED = 12, 10
# Two levels with all that lies between them, and attention at the coarsest place: every kind of part, few of each.
SMALL = dict(
    sample_size=8,
    down_block_types=("DownBlock2D",) * 2,
    up_block_types=("UpBlock2D",) * 2,
    block_out_channels=(16, 32),
    layers_per_block=1,
    attention_head_dim=2,
    cross_attention_dim=24,
    norm_num_groups=8,
)
SIZES = dict(
    addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + POOLED
)
FAMILY = {"sd": SMALL, "sdxl": SMALL | SIZES | {"use_linear_projection": True, "transformer_layers_per_block": 2}}


def theirs(family: str, dtype: str, seed: int, w_width: int | None = None) -> UNet2DConditionModel:
    """diffusers' module with weights drawn from a seed, so that none is left at the zero or one it starts from."""
    net = UNet2DConditionModel(**FAMILY[family], time_cond_proj_dim=w_width).to(DTYPES[dtype])
    rng = np.random.default_rng(seed)
    for name, tensor in net.state_dict().items():
        n = rng.standard_normal(tensor.shape)
        if tensor.ndim > 1:
            tensor.copy_(torch.tensor(n / np.sqrt(np.prod(tensor.shape[1:]))))
        else:  # norms scale by about one, biases are small
            tensor.copy_(torch.tensor(0.1 * n + name.endswith("weight")))
    return net


def as_student(teacher: UNet2DConditionModel, w_width: int = W_WIDTH) -> UNet2DConditionModel:
    """A module that takes w through a map of zeros and has the teacher's weights otherwise (LCM section 4.3)."""
    dtype = teacher.dtype
    net = UNet2DConditionModel.from_config(teacher.config, time_cond_proj_dim=w_width).to(dtype)
    zero = {"time_embedding.cond_proj.weight": torch.zeros(teacher.config.block_out_channels[0], w_width, dtype=dtype)}
    net.load_state_dict(copy.deepcopy(teacher.state_dict()) | zero)
    return net


def ours(module: UNet2DConditionModel):
    """(apply, params) of lcm_jax: sizes from the module's config, weights through the bijection."""
    cfg = UNetConfig(**unet_sizes(dict(module.config)), dtype=str(module.dtype).removeprefix("torch."))
    apply, abstract = network(cfg)
    return apply, jax.tree.map(jnp.asarray, from_torch(arrays(module.state_dict()), abstract))


@functools.cache
def network(cfg: UNetConfig):
    """(apply, abstract parameters) in the config's own precision."""
    net = unet(cfg)
    typed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(cfg.dtype)), net.abstract())
    return net.apply, typed


def arrays(tensors) -> dict[str, np.ndarray]:
    """Copies of named tensors."""
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def named(params) -> dict[str, np.ndarray]:
    """A parameter tree (or gradients, or moments of that shape) in PyTorch's names and layouts."""
    return to_torch(params)


def nhwc(x: torch.Tensor) -> np.ndarray:
    return x.detach().permute(0, 2, 3, 1).numpy()


def nchw(x: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.tensor(np.asarray(x), dtype=DTYPES[dtype]).permute(0, 3, 1, 2).contiguous()


def relative(a, b) -> float:
    """||a - b|| / ||b||."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def relative_over(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The same over all tensors together."""
    assert a.keys() == b.keys()
    join = lambda tensors: np.concatenate([tensors[name].ravel() for name in b])
    return relative(join(a), join(b))
