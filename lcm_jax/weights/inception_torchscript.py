"""Names of the FID Inception in the TorchScript file that StyleGAN3 uses -> those of the PyTorch ports of FID.

The file says what TensorFlow's graph said: layers numbered through, towers in blocks, a batch norm without scale.
"""

from collections.abc import Mapping

import numpy as np

_STEM = {
    "conv": "Conv2d_1a_3x3",
    "conv_1": "Conv2d_2a_3x3",
    "conv_2": "Conv2d_2b_3x3",
    "conv_3": "Conv2d_3b_1x1",
    "conv_4": "Conv2d_4a_3x3",
}
_A = {"conv": "branch1x1", "tower": "branch5x5_", "tower_1": "branch3x3dbl_", "tower_2": "branch_pool"}
_B = {"conv": "branch3x3", "tower": "branch3x3dbl_"}
_C = {"conv": "branch1x1", "tower": "branch7x7_", "tower_1": "branch7x7dbl_", "tower_2": "branch_pool"}
_D = {"tower": "branch3x3_", "tower_1": "branch7x7x3_"}
_E = {
    "conv": "branch1x1",
    "tower_conv": "branch3x3_1",
    "tower_mixed_conv": "branch3x3_2a",
    "tower_mixed_conv_1": "branch3x3_2b",
    "tower_1_conv": "branch3x3dbl_1",
    "tower_1_conv_1": "branch3x3dbl_2",
    "tower_1_mixed_conv": "branch3x3dbl_3a",
    "tower_1_mixed_conv_1": "branch3x3dbl_3b",
    "tower_2_conv": "branch_pool",
}
_BLOCKS = (  # mixed, mixed_1, ...
    ("Mixed_5b", _A), ("Mixed_5c", _A), ("Mixed_5d", _A), ("Mixed_6a", _B), ("Mixed_6b", _C), ("Mixed_6c", _C),
    ("Mixed_6d", _C), ("Mixed_6e", _C), ("Mixed_7a", _D), ("Mixed_7b", _E), ("Mixed_7c", _E),
)  # fmt: skip
_LEAVES = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def from_torchscript(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors under the names of the PyTorch ports, each batch norm with the scale of 1 that was left out.

    Raises ValueError for a name that such a file does not have.
    """
    renamed = {}
    for name, tensor in tensors.items():
        renamed[_name(name)] = tensor
        if name.endswith(".beta"):
            renamed[_name(name).removesuffix("bias") + "weight"] = np.ones_like(tensor)
    return renamed


def _name(name: str) -> str:
    head, _, rest = name.partition("layers.")
    layer, *inner, leaf = rest.split(".") if rest else ("", name)
    try:
        if layer in _STEM and not inner:
            return f"{_STEM[layer]}.{_LEAVES[leaf]}"
        block, branches = _BLOCKS[int(layer.removeprefix("mixed").removeprefix("_") or 0)]
        branch = branches[inner[0]]
        if len(inner) == 2 and not branch.endswith("pool"):  # layers of a tower: conv, conv_1, ...
            branch += str(int(inner[1].removeprefix("conv").removeprefix("_") or 0) + 1)
        return f"{block}.{branch}.{_LEAVES[leaf]}"
    except (LookupError, ValueError):
        raise ValueError(f"{name!r} is no tensor of FID's Inception as TorchScript: give that file") from None
