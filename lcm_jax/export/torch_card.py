"""The README.md of what leaves for PyTorch's world: a diffusers pipeline, a single file, a LoRA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lcm_jax.export.model_card import card, facts, rows, usage
from lcm_jax.sampling.defaults import default_steps, default_w
from lcm_jax.typing import Params

W = (
    "`w` is guidance as `cond + w (cond - uncond)`; the guidance scale of diffusers and others is `w + 1`. A negative "
    "prompt has no effect in a model that takes `w` as an input, nor at a scale of 1."
)
OURS = "## In lcm_jax"
LCM = "pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)"


def pipeline_card(
    out: Path, description: Mapping[str, Any], networks: Mapping[str, Params], dtype: str, name: str
) -> str:
    """Of a diffusers folder whose pipeline is of the class `name`."""
    table = facts(description, networks, f"{dtype}, a {name} of diffusers")
    told, w = description["text"], default_w(description)
    pairs = bool(w) and not description["unet"]["w_width"]  # the empty caption is asked, too
    load, prompt, note = "", '"a red heart"', ""
    if not told["towers"]:
        load = ", text_encoder=None, tokenizer=None"
        prompt = "prompt_embeds=states" + (", negative_prompt_embeds=empty" if pairs else "")
        note = (
            f"\n\nIts captions are read by {told['encoder']}, which diffusers does not have: `states` [b, "
            f"{told['length']}, {description['unet']['context_width']}] are that encoder's token states, zero where "
            "padded" + ("; `empty` are those of the empty caption." if pairs else ".")
        )
    code = python(
        "import torch",
        "from diffusers import DiffusionPipeline",
        f"pipe = DiffusionPipeline.from_pretrained({out.name!r}, torch_dtype=torch.{dtype}{load})",
        f"image = pipe({prompt}, {_call(description)}).images[0]",
    )
    sections = [f"## In diffusers\n\n{code}{note}\n\n{W}", usage(out.name, description, OURS)]
    return front() + card(out.name, description, table, sections)


def single_file_card(
    out: Path, description: Mapping[str, Any], networks: Mapping[str, Params], dtype: str, file: str, family: str
) -> str:
    """Of a folder with one file in the original layout."""
    place = f"{out.name}/{file}"  # from the folder that holds it: a card travels
    table = facts(description, networks, f"{dtype}, {file}: one file in the original layout of {family}")
    student = description["role"] == "consistency"
    if description["unet"]["w_width"]:
        there = (
            "This U-Net takes `w` as an input (time_embedding.cond_proj). Most programs that load single files know "
            "nothing of it and leave it out: for those, export with one `--w` of your choice, or as a diffusers folder."
        )
    else:
        sampler = f" and sample with `lcm`, {default_steps(description)} steps" if student else ""
        name = "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"
        code = python(
            "import torch",
            f"from diffusers import LCMScheduler, {name}",
            f"pipe = {name}.from_single_file({place!r}, torch_dtype=torch.{dtype})",
            *[LCM] * student,
            f'image = pipe("a red heart", {_call(description)}).images[0]',
        )
        scale = default_w(description) + 1
        there = f"In ComfyUI and others load it as a checkpoint{sampler}, cfg {scale:g}. In diffusers:\n\n{code}"
    sections = [f"## Elsewhere\n\n{there}\n\n{W}", usage(place, description, OURS)]
    return card(out.name, description, table, sections)


def lora_card(out: Path, description: Mapping[str, Any], file: str, told: Mapping[str, Any]) -> str:
    """Of a folder with one file of adapters; `told` are the rows of its table, "base" the model they belong to."""
    code = python(
        "import torch",
        "from diffusers import DiffusionPipeline, LCMScheduler",
        f"pipe = DiffusionPipeline.from_pretrained({str(told['base'])!r}, torch_dtype=torch.float16)",
        LCM,
        f"pipe.load_lora_weights({out.name!r}, weight_name={file!r})",
        'image = pipe("a red heart", num_inference_steps=4, guidance_scale=1).images[0]',
    )
    there = "Made with lcm_jax. ComfyUI and others take the file as a LoRA; sample with `lcm`, 4 steps, cfg 1 to 2."
    sections = [f"## In diffusers\n\n{code}\n\n{W}", f"## Elsewhere\n\n{there}"]
    return front("tags:\n- lora\n") + card(out.name, description, rows(told), sections)


def _call(description: Mapping[str, Any]) -> str:
    return f"num_inference_steps={default_steps(description)}, guidance_scale={default_w(description) + 1:g}"


def python(*lines: str) -> str:
    """Lines of Python in Markdown."""
    return "\n".join(["```python", *lines, "```"])


def front(more: str = "") -> str:
    """What the Hugging Face hub reads of a card."""
    return f"---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n{more}---\n\n"
