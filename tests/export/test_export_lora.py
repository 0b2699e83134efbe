"""Adapters leave in both namings, and do in diffusers what they do here."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_sd

from lcm_jax import exporting, run_folder, source
from lcm_jax.models import lora
from lcm_jax.weights import lora_file

CONFIG = lora.LoraConfig(rank=2, alpha=3)
RECORD = {"base": "owner/model", "variant": None, "rank": 2, "alpha": 3, "targets": lora.LCM_TARGETS}
SPEC = dataclasses.replace(tiny_sd.spec(), role="consistency", about={"lora": RECORD})
TREE = source.network(SPEC, "unet").abstract()


def adapters():
    """Adapters whose every factor matters."""
    rng = np.random.default_rng(0)
    drawn = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), jnp.float32)  # noqa: E731
    return jax.tree.map(drawn, jax.eval_shape(lambda key: lora.init(key, TREE, CONFIG), jax.random.key(0)))


@pytest.fixture
def run(tmp_path, monkeypatch):
    return run_of(tmp_path / "run", monkeypatch)


def run_of(where, monkeypatch, spec=SPEC):
    """A run folder that trained adapters, as far as an export looks at it."""
    (where / "checkpoints").mkdir(parents=True)
    (where / "config.json").write_text(json.dumps({"seed": 7, "average": {}}))
    monkeypatch.setattr(run_folder, "adapters", lambda *which: (spec, adapters(), 12))
    return where


@pytest.mark.parametrize("format, dtype", [("lora", "float32"), ("kohya", "float16")])
def test_a_runs_adapters_come_back(format, dtype, run, tmp_path):
    out = exporting.export(run, tmp_path / "out", format, dtype)
    name = {"lora": "pytorch_lora_weights.safetensors", "kohya": "out.safetensors"}[format]
    assert sorted(path.name for path in out.iterdir()) == ["README.md", name]
    found = lora_file.read(out / name, {"unet": TREE})["unet"]
    wanted = jax.tree.map(lambda leaf: np.asarray(leaf, dtype), adapters())
    assert jax.tree.structure(wanted) == jax.tree.structure(dict(found.lora))
    jax.tree.map(np.testing.assert_array_equal, wanted, dict(found.lora))
    assert set(found.alpha.values()) == {3.0} and len(found.alpha) == len(lora.targeted(TREE, CONFIG))
    card = (out / "README.md").read_text()
    assert f"load_lora_weights('{out.name}', weight_name='{name}')" in card and "from_pretrained('owner/model'" in card
    assert "| rank | 2 |" in card and "| alpha | 3 |" in card and '"seed": 7' in card
    with pytest.raises(FileExistsError, match="give --overwrite"):
        exporting.export(run, tmp_path / "out", format, dtype)
    exporting.export(run, tmp_path / "out", format, dtype, overwrite=True)


def test_a_factor_too_large_is_named(run, tmp_path, monkeypatch):
    large = adapters()
    module = large["mid_block"]["resnets"]["0"]["conv1"]
    module["down"] = module["down"].at[0, 0, 0, 0].set(1e6)
    monkeypatch.setattr(run_folder, "adapters", lambda *which: (SPEC, large, 12))
    with pytest.raises(ValueError, match="mid_block/resnets/0/conv1/down reaches 1e.06, too large for float16"):
        exporting.export(run, tmp_path / "out", "lora", "float16")
    with pytest.raises(ValueError, match="w is for whole models: adapters keep"):
        exporting.export(run, tmp_path / "out", "lora", w=4.0)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_diffusers_draws_with_them_as_we_do(run, tmp_path):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("peft", reason="diffusers reads LoRA files through peft")
    base = tiny_sd.model_folder(tmp_path / "base", tiny_sd.spec())
    folder = exporting.export(base, tmp_path / "pipeline", "diffusers")
    rng = np.random.default_rng(1)
    z, context, t = rng.normal(size=(2, 4, 4, 4)), rng.normal(size=(2, 5, 16)), np.array([5, 900])
    params = source.open_model(base).load("unet")
    ours = jax.jit(partial(source.network(SPEC, "unet").apply, lora.merge(params, adapters(), 3)))
    wanted = np.asarray(ours(jnp.float32(z), jnp.asarray(t), jnp.float32(context)))
    for format, name in {"lora": "pytorch_lora_weights.safetensors", "kohya": "kohya.safetensors"}.items():
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.load_lora_weights(exporting.export(run, tmp_path / format, format), weight_name=name)
        with torch.no_grad():
            told = (torch.tensor(z, dtype=torch.float32).permute(0, 3, 1, 2), torch.tensor(t))
            theirs = pipe.unet(*told, torch.tensor(context, dtype=torch.float32)).sample.permute(0, 2, 3, 1).numpy()
        assert np.linalg.norm(theirs - wanted) / np.linalg.norm(wanted) < 1e-5
        pipe.unload_lora_weights()
        with torch.no_grad():
            plain = pipe.unet(*told, torch.tensor(context, dtype=torch.float32)).sample.permute(0, 2, 3, 1).numpy()
        assert np.linalg.norm(plain - wanted) / np.linalg.norm(wanted) > 0.05
