"""An exported pipeline draws in PyTorch what its model draws here; one that is not the same is found out."""

import dataclasses
import re
import sys

import numpy as np
import pytest
import tiny
import tiny_sd
from safetensors.numpy import load_file, save_file
from test_export_diffusers import model
from test_export_lora import RECORD, SPEC, run_of
from test_export_single_file import model as single_file_model
from test_export_single_file import student

from launch import verify
from lcm_jax import captions, exporting
from lcm_jax.models.spec import TextSpec


def exported(root, spec, format="diffusers", dtype="float32"):
    """An export, what it was made of, and how."""
    flax = root / "flax"
    (tiny_sd if spec.text.towers else tiny).model_folder(flax, spec)
    return exporting.export(flax, root / "out", format, dtype), flax, format, dtype


def said_small(capsys):
    """Whether the difference that is printed is one of rounding."""
    most, mean = re.search(r"differ by (\S+) of 255 at most, (\S+) on average", capsys.readouterr().out).groups()
    return 0 < float(mean) < float(most) < 0.1  # of 255


@pytest.mark.parametrize("family, dtype", [("sd2", "float32"), ("sdxl-lcm", "float16")])
def test_both_sides_draw_the_same(family, dtype, tmp_path, capsys):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    verify.main(*exported(tmp_path, model(family), dtype=dtype))
    assert said_small(capsys) and {path.name for path in tmp_path.iterdir()} == {"flax", "out"}


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_diffusers_draws_the_same_with_a_single_file(family, tmp_path, capsys):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    spec = single_file_model(family)
    if family == "sdxl":  # diffusers tells its text encoders apart by their widths
        first, second = spec.text.towers
        text = dataclasses.replace(spec.text, towers=(first, dataclasses.replace(second, width=8)))
        spec = dataclasses.replace(spec, text=text, unet=dataclasses.replace(spec.unet, context_width=24))
    verify.main(*exported(tmp_path, spec, "single-file", "float16"))
    assert said_small(capsys)


def test_a_single_file_that_takes_w_is_not_read_by_diffusers(tmp_path):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    given = exported(tmp_path, student(), "single-file")
    with pytest.raises(ValueError, match="takes w as an input, which diffusers does not read .*: fix it with --w"):
        verify.main(*given)


@pytest.mark.parametrize("format, dtype", [("lora", "float32"), ("kohya", "float16")])
def test_diffusers_draws_the_same_with_adapters(format, dtype, tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch"), pytest.importorskip("peft", reason="diffusers reads LoRA files through peft")
    base = tiny_sd.model_folder(tmp_path / "base", tiny_sd.spec())
    spec = dataclasses.replace(SPEC, about={"lora": {**RECORD, "base": str(base)}})
    where = run_of(tmp_path / "run", monkeypatch, spec)
    out = exporting.export(where, tmp_path / "out", format, dtype)
    verify.main(out, where, format, dtype)
    assert said_small(capsys)
    (file,) = out.glob("*.safetensors")
    stronger = lambda key: 2.0 if "lora_B" in key or "lora_up" in key else 1.0
    save_file({k: np.asarray(stronger(k) * v) for k, v in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="out draws another picture in PyTorch"):
        verify.main(out, where, format, dtype)


def test_captions_of_another_encoder_and_a_damaged_export(tmp_path, monkeypatch):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    monkeypatch.setitem(captions.ENCODERS, "minilm", tiny.FakeCaptions)
    out, *rest = exported(tmp_path, dataclasses.replace(model("lcm"), text=TextSpec("minilm", 12)))
    verify.main(out, *rest)
    file = out / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    key = "up_blocks.0.resnets.0.conv1.weight"
    tensors[key] = tensors[key].transpose(0, 1, 3, 2).copy()  # as a wrong layout would have it
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"out draws another picture in PyTorch: .* of 255 apart, allowed are 2$"):
        verify.main(out, *rest)


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"--verify draws in PyTorch .*: pip install 'lcm_jax\[torch\]'"):
        verify.main(tmp_path, "model", "diffusers", "float32")
