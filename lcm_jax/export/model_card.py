"""The README.md of an exported model: what it is, how it was made, how to draw with it, whom it owes."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from lcm_jax.sampling.defaults import default_steps, default_w
from lcm_jax.typing import Params

ROLES = {
    "consistency": "A latent consistency model: pictures in one to a few steps, guidance w as an input.",
    "diffusion": "A latent diffusion model, guided while sampling; a teacher to distil.",
    "consistency of noise": "A latent consistency model that draws from noise alone: pictures in one to a few steps.",
    "diffusion of noise": "A latent denoiser of noise levels, sampled by Heun's method; a teacher to distil or tune.",
    "autoencoder": "An autoencoder of pictures: the latents other models work in.",
}


SOUGHT = "noise levels sought by"  # in `about`: the score by which those of sampling were found

FLAX = "NAME.safetensors (and the same as Flax NAME.msgpack where that is beside it)"


def model_card(out: Path, description: Mapping[str, Any], networks: Mapping[str, Params], dtype: str) -> str:
    """Markdown from the content of model.json and the weights beside it (or their shapes)."""
    use = [] if description["role"] == "autoencoder" else [usage(out.name, description)]
    return card(out.name, description, facts(description, networks, f"{dtype}, {FLAX}"), use)


def card(title: str, description: Mapping[str, Any], table: str, sections: Sequence[str]) -> str:
    """A whole card: title, what it is, a table, sections of its own, training and whom it owes."""
    about = description["about"]
    role = description["role"] + (" of noise" if "network" in description else "")
    parts = [f"# {title}", ROLES[role], table, *sections]
    if "training" in about:
        parts.append(f"## Training\n\n{training(about['training'])}")
    parts.append(f"## Licence and attribution\n\n{credits(about)}")
    return "\n\n".join(parts) + "\n"


def facts(description: Mapping[str, Any], networks: Mapping[str, Params], weights: str) -> str:
    """The table of what one must know to use the weights; `weights` says what they are stored as."""
    told = {"weights": weights}
    for name, tree in networks.items():
        told[name] = f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M parameters"
    told["pictures"] = f"{description['image_size']} x {description['image_size']} pixels"
    if "network" in description:
        return rows(told | noise_facts(description))
    if description["role"] != "autoencoder":
        path = description["path"]
        snr = ", zero terminal SNR" if path["zero_terminal_snr"] else ""
        told["prediction"] = description["kind"]
        told["noise schedule"] = f"{path['schedule']}, T = {path['T']}{snr}"
        told["captions"] = f"{description['text']['encoder']}, {description['text']['length']} tokens"
    if guidance := description.get("guidance"):
        told["guidance w"] = (
            f"trained on [{guidance['w_min']:g}, {guidance['w_max']:g}], as {guidance['convention']}; "
            "the usual guidance scale is w + 1"
        )
        told["steps"] = ", ".join(map(str, description["steps"]))
    return rows(told)


def noise_facts(description: Mapping[str, Any]) -> dict[str, str]:
    """What one must know of a network of noise levels."""
    low, high = description["sigma_min"], description["sigma_max"]
    told = {"noise": f"VE, sigma {low:g} to {high:g}, latents at sigma_data {description['sigma_data']:g}"}
    if names := description["classes"]:
        told["classes"] = f"{len(names)}: " + ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    if description["role"] == "consistency":
        lists = (", ".join(f"{level:g}" for level in levels) for levels in description["sigmas"])
        told |= {f"noise levels of {n} step{'s' * (n > 1)}": levels for n, levels in enumerate(lists, 1)}
    if sought := description["about"].get(SOUGHT):
        told[SOUGHT] = ", ".join(f"{name} {value}" for name, value in sought.items())
    return told


def with_levels(text: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The card of a folder whose noise levels of sampling were chosen anew; what its owner changed stays."""
    for part in (lambda told: lines(noise_facts(told)), lambda told: noise_usage(name, told, "## Use")):
        text = text.replace(part(before), part(after))
    return text


def rows(told: Mapping[str, Any]) -> str:
    """A table of two columns."""
    return f"| | |\n|---|---|\n{lines(told)}"


def lines(told: Mapping[str, Any]) -> str:
    """Rows of a table of two columns, without its head."""
    return "\n".join(f"| {name} | {value} |" for name, value in told.items())


def usage(where: str, description: Mapping[str, Any], heading: str = "## Use") -> str:
    """Three lines of Python and one of shell."""
    if "network" in description:
        return noise_usage(where, description, heading)
    steps, w = default_steps(description), default_w(description)
    return f"""{heading}

```python
from lcm_jax.pipeline import Pipeline
pipe = Pipeline.load({where!r})
images = pipe("a red heart", steps={steps}, w={w:g}, seed=0, n=4)  # uint8 [4, H, W, 3]
```

```bash
python -m launch.sample --model {where} --prompt "a red heart" --steps {steps} --w {w:g}
```"""


def noise_usage(where: str, description: Mapping[str, Any], heading: str) -> str:
    """The same of a network of noise levels."""
    steps, name = default_steps(description), next(iter(description["classes"]), None)
    argument, flag = ("", "") if name is None else (f", label={name!r}", f" --label {shlex.quote(name)}")
    return f"""{heading}

```python
from lcm_jax.edm_pipeline import EDMPipeline
pipe = EDMPipeline.load({where!r})
images = pipe(16, steps={steps}{argument}, seed=0)  # uint8 [16, H, W, 3]
```

```bash
python -m launch.sample --model {where} --n 16 --steps {steps}{flag}
```"""


def training(record: Mapping[str, Any]) -> str:
    """Which weights of which step, and the whole config."""
    config = json.dumps(record["config"], indent=2)
    return f"The {record['weights']} weights of step {record['step']} of this config:\n\n```json\n{config}\n```"


def credits(about: Mapping[str, Any]) -> str:
    """The pictures' owners and what else `about` says."""
    lines = [f"- Trained on {text}" for text in about.get("attribution", ())]
    lines += [f"- Adapters of {about['lora']['base']}, whose licence holds, too"] if "lora" in about else []
    lines += [f"- {k}: {v}" for k, v in about.items() if k not in ("attribution", "training", "lora", SOUGHT)]
    return "\n".join(["The software is under the Apache License 2.0.", *([""] if lines else []), *lines])
