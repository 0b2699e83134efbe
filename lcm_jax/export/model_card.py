"""The README.md of an exported model: what it is, how it was made, how to draw with it, whom it owes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from lcm_jax.typing import Params

ROLES = {
    "consistency": "A latent consistency model: pictures in one to a few steps, guidance w as an input.",
    "diffusion": "A latent diffusion model, guided while sampling; a teacher to distil.",
    "autoencoder": "An autoencoder of pictures: the latents other models work in.",
}


def model_card(out: Path, description: Mapping[str, Any], networks: Mapping[str, Params], dtype: str) -> str:
    """Markdown from the content of model.json and the weights beside it."""
    about = description["about"]
    parts = [f"# {out.name}", ROLES[description["role"]], facts(description, networks, dtype)]
    if description["role"] != "autoencoder":
        parts.append(usage(out, description))
    if "training" in about:
        parts.append(f"## Training\n\n{training(about['training'])}")
    parts.append(f"## Licence and attribution\n\n{credits(about)}")
    return "\n\n".join(parts) + "\n"


def facts(description: Mapping[str, Any], networks: Mapping[str, Params], dtype: str) -> str:
    """The table of what one must know to use the weights."""
    rows = {"weights": f"{dtype}, NAME.safetensors (and the same as Flax NAME.msgpack where that is beside it)"}
    for name, tree in networks.items():
        rows[name] = f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M parameters"
    rows["pictures"] = f"{description['image_size']} x {description['image_size']} pixels"
    if description["role"] != "autoencoder":
        path = description["path"]
        snr = ", zero terminal SNR" if path["zero_terminal_snr"] else ""
        rows["prediction"] = description["kind"]
        rows["noise schedule"] = f"{path['schedule']}, T = {path['T']}{snr}"
        rows["captions"] = f"{description['text']['encoder']}, {description['text']['length']} tokens"
    if guidance := description["guidance"]:
        rows["guidance w"] = (
            f"trained on [{guidance['w_min']:g}, {guidance['w_max']:g}], as {guidance['convention']}; "
            "the usual guidance scale is w + 1"
        )
        rows["steps"] = ", ".join(map(str, description["steps"]))
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def usage(out: Path, description: Mapping[str, Any]) -> str:
    """Three lines of Python and one of shell."""
    steps, g = 50, description["guidance"]
    w = 2.0 if g is None else (g["w_min"] + g["w_max"]) / 2
    if description["role"] == "consistency":
        steps = 4
    return f"""## Use

```python
from lcm_jax.pipeline import Pipeline
pipe = Pipeline.load({str(out)!r})
images = pipe("a red heart", steps={steps}, w={w:g}, seed=0, n=4)  # uint8 [4, H, W, 3]
```

```bash
python -m launch.sample --model {out} --prompt "a red heart" --steps {steps} --w {w:g}
```"""


def training(record: Mapping[str, Any]) -> str:
    """Which weights of which step, and the whole config."""
    config = json.dumps(record["config"], indent=2)
    return f"The {record['weights']} weights of step {record['step']} of this config:\n\n```json\n{config}\n```"


def credits(about: Mapping[str, Any]) -> str:
    """The pictures' owners and what else `about` says."""
    lines = [f"- Trained on {text}" for text in about.get("attribution", ())]
    lines += [f"- {k}: {v}" for k, v in about.items() if k not in ("attribution", "training")]
    return "\n".join(["The software is under the Apache License 2.0.", *([""] if lines else []), *lines])
