"""The words of launch.export, and what it writes for a model that is no run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_sd

ROOT = Path(__file__).parents[2]


def command(*arguments):
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    given = [sys.executable, "-m", "launch.export", *arguments]
    return subprocess.run(given, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model=m", "--checkpoint=c", "--out=o"), "give either --checkpoint RUN or --model MODEL"),
        (("--out=o",), "give either --checkpoint RUN or --model MODEL"),
        (("--model=m", "--step=3", "--out=o"), "--step, --weights and --ema choose among the weights of --checkpoint"),
        (("--checkpoint=c", "--variant=fp16", "--out=o"), "--variant, --kind and --empty_caption are for --model"),
        (("--model=m", "--verify", "--out=o"), "--verify draws with diffusers in PyTorch, which reads no flax: give"),
    ],
)
def test_wrong_flags_are_one_line(arguments, message):
    done = command(*arguments)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_model_is_exported(tmp_path):
    flax = tiny_sd.model_folder(tmp_path / "flax")
    done = command(f"--model={flax}", f"--out={tmp_path / 'out'}", "--format=diffusers", "--dtype=float16")
    parts = "README.md, model_index.json, scheduler, text_encoder, tokenizer, unet, vae"
    assert done.stdout == f"{tmp_path / 'out'}: {parts}\n", done.stderr
    done = command(f"--checkpoint={flax}", f"--out={tmp_path / 'other'}")
    assert done.stderr == f"error: {flax} holds no run: give a --run folder of launch.train, or a model as --model\n"
