"""An exported pipeline draws in PyTorch what its model draws here; one that is not the same is found out."""

import re
import sys

import pytest
import tiny
import tiny_sd
from safetensors.numpy import load_file, save_file
from test_export_diffusers import model

from launch import verify
from lcm_jax import captions, exporting
from lcm_jax.models.spec import TextSpec


def exported(root, spec, dtype="float32"):
    """A diffusers folder and what it was made of."""
    flax = root / "flax"
    (tiny_sd if spec.text.towers else tiny).model_folder(flax, spec)
    return exporting.export(flax, root / "out", "diffusers", dtype), exporting.leaving(flax, dtype), dtype


@pytest.mark.parametrize("family, dtype", [("sd2", "float32"), ("sdxl-lcm", "float16")])
def test_both_sides_draw_the_same(family, dtype, tmp_path, capsys):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    verify.main(*exported(tmp_path, model(family), dtype))
    said = capsys.readouterr().out
    most, mean = re.search(r"differ by (\S+) of 255 at most, (\S+) on average", said).groups()
    assert 0 < float(mean) < float(most) < 0.1  # of 255


def test_captions_of_another_encoder_and_a_damaged_export(tmp_path, monkeypatch):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    import dataclasses

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
        verify.main(tmp_path, None, "float32")
