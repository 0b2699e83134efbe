"""The drawing of the layers, executable: who may import whom, and through which door a library enters."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = {  # folder or module of lcm_jax: what else of lcm_jax it may import
    "typing": [],
    "settings": [],
    "diffusion": ["typing"],
    "models": ["typing", "diffusion"],
    "weights": ["typing", "diffusion", "models.presets", "cache"],
    "parallel": ["typing", "diffusion"],
    "data": ["typing", "diffusion", "settings", "cache"],
    "objectives": ["typing", "diffusion"],
    "sampling": ["typing", "diffusion"],
    "train": ["typing", "diffusion", "objectives", "sampling", "parallel"],
    "evaluate": ["typing", "diffusion", "objectives", "sampling", "parallel"],
    "export": ["typing", "diffusion", "objectives", "sampling", "parallel", "weights"],
    "cache": [],
    "__init__": [],
}
# Layer 4, where networks, weights and objectives meet: assess, the modules beside the folders; all launch sees.
BESIDE = sorted(p.stem for p in (ROOT / "lcm_jax").glob("*.py") if p.stem not in LAYERS)
COMPOSITION = ["assess", *BESIDE]
LAYERS |= {name: [""] for name in COMPOSITION}
PURE = ("typing", "diffusion", "objectives", "sampling")  # arrays in, arrays out
PURE_LIBRARIES = {"jax", "numpy", "jaxtyping"}
DOORS = {  # library: the only places it may be imported, of lcm_jax unless launch or configs
    "flax": ["models"],
    "optax": ["train.optimizer", "train.step", "diffusion.coupling"],
    "orbax": ["train.checkpoint", "train.writing"],
    "ml_collections": ["build", "sections", "configs", "launch"],
    "absl": ["launch"],
    "safetensors": ["weights"],
    "grain": ["data"],
    "array_record": ["data"],
    "fsspec": ["data.store"],
    "clu": ["planning"],
    "pyarrow": ["data"],
    "tensorflow_datasets": ["data"],
    "PIL": ["data", "evaluate"],
    "matplotlib": ["evaluate"],
    "tensorboardX": ["train.metrics"],
    "torch": ["launch.verify"],  # of no part of the core install: it says so where they are absent
    "diffusers": ["launch.verify"],
}
ABSENT = ("tensorflow", "torchvision", "transformers", "tensorboard", "pytest", "tests")


def imported(source: str) -> set[str]:
    """Dotted names a module imports; `from a import b` counts as a.b, which covers modules and members."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer they reach into"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def within(name: str, places: list[str]) -> bool:
    return any(place == "" or name == place or name.startswith(place + ".") for place in places)


def wrong_arrows(module: str, source: str) -> list[str]:
    """What the module `lcm_jax.x.y`, `launch.x` or `configs.x` imports against the drawing."""
    found = []
    package, _, inner = module.partition(".")
    layer = inner.partition(".")[0] or "__init__"
    place = inner if package == "lcm_jax" else module
    for name in imported(source):
        top, _, rest = name.partition(".")
        if package == "lcm_jax" and layer not in LAYERS:
            found.append(f"{module} belongs to no layer")
        elif top in sys.stdlib_module_names:
            continue
        elif top in ("launch", "configs") and (package, top) != ("launch", "configs") and package != top:
            found.append(f"{module} imports {name}")
        elif top == "lcm_jax" and package == "configs":
            found.append(f"{module} imports {name}: configs hold values only")
        elif top == "lcm_jax" and package == "launch":
            if not within(rest, [*COMPOSITION, "cache"]):
                found.append(f"{module} imports {name}: launch goes through {', '.join(COMPOSITION)}")
        elif top == "lcm_jax" and not within(rest, [layer, *LAYERS[layer]]):
            found.append(f"{module} imports {name}")
        elif top in DOORS and not within(place, DOORS[top]):
            found.append(f"{module} imports {name}: the door of {top} is {', '.join(DOORS[top])}")
        elif top in ABSENT:
            found.append(f"{module} imports {name}: no part of the core install")
        elif package == "lcm_jax" and layer in PURE and top not in PURE_LIBRARIES | {"lcm_jax", *DOORS}:
            found.append(f"{module} imports {name}: {layer} knows jax and numpy only")
    return found


def modules():
    for folder in ("lcm_jax", "launch", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


@pytest.mark.parametrize("module, path", [pytest.param(m, p, id=m) for m, p in modules()])
def test_every_module_keeps_to_the_drawing(module, path):
    assert wrong_arrows(module, path.read_text(encoding="utf-8")) == []


def test_every_folder_has_a_layer():
    folders = {p.name for p in (ROOT / "lcm_jax").iterdir() if (p / "__init__.py").exists()}
    assert {"diffusion", "train"} <= folders <= LAYERS.keys()


@pytest.mark.parametrize(
    "module, line",
    [
        ("lcm_jax.diffusion.path", "import optax"),
        ("lcm_jax.diffusion.path", "import einops"),
        ("lcm_jax.diffusion.path", "from lcm_jax.models.unet import UNet"),
        ("lcm_jax.models.unet", "from lcm_jax.data import loader"),
        ("lcm_jax.models.unet", "from lcm_jax import weights"),
        ("lcm_jax.weights.bijection", "from lcm_jax.models.unet import UNet"),
        ("lcm_jax.objectives.lcd", "def late():\n    from flax import nnx"),
        ("lcm_jax.sampling.few_step", "import flax.nnx"),
        ("lcm_jax.train.loop", "import orbax.checkpoint as ocp"),
        ("lcm_jax.train.loop", "from lcm_jax.models.unet import UNet"),
        ("lcm_jax.train.loop", "from lcm_jax.evaluate import frechet"),
        ("lcm_jax.train.loop", "import lcm_jax.build"),
        ("lcm_jax.evaluate.frechet", "import optax"),
        ("lcm_jax.build", "import torch"),
        ("lcm_jax.build", "from launch import train"),
        ("lcm_jax.data.twemoji", "import tensorflow as tf"),
        ("lcm_jax.helpers.misc", "import jax"),
        ("launch.train", "from lcm_jax.train.checkpoint import Checkpointer"),
        ("launch.train", "import optax"),
        ("launch.export", "import torch"),
        ("launch.verify", "import transformers"),
        ("configs.lcd", "from lcm_jax.diffusion import path"),
        ("configs.lcd", "from launch import train"),
    ],
)
def test_a_planted_wrong_arrow_is_found(module, line):
    assert len(wrong_arrows(module, "import jax\n" + line)) >= 1


@pytest.mark.parametrize(
    "module, line",
    [
        ("lcm_jax.weights.bijection", "from lcm_jax.models.presets import PRESETS"),
        ("lcm_jax.train.checkpoint", "import orbax.checkpoint as ocp"),
        ("lcm_jax.train.step", "from lcm_jax.objectives.base import Objective"),
        ("lcm_jax.build", "from lcm_jax.models import unet"),
        ("launch.train", "from absl import app\nfrom lcm_jax import build, pipeline"),
        ("launch.verify", "import torch\nfrom diffusers import DiffusionPipeline\nfrom lcm_jax import verifying"),
        ("configs.lcd", "from ml_collections import config_dict"),
    ],
)
def test_the_arrows_of_the_drawing_pass(module, line):
    assert wrong_arrows(module, line) == []


def test_a_relative_import_is_refused():
    with pytest.raises(AssertionError, match="relative"):
        wrong_arrows("lcm_jax.train.loop", "from . import state")
