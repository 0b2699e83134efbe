"""LoRA files in a pipeline: what they change, in either naming, and what does not fit."""

import jax
import numpy as np
import pytest
import tiny_sd

from lcm_jax import adapting
from lcm_jax.data.shards import sha256
from lcm_jax.models import lora
from lcm_jax.pipeline import Pipeline
from lcm_jax.source import network
from lcm_jax.weights import lora_file


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return Pipeline.load(tiny_sd.model_folder(tmp_path_factory.mktemp("sd") / "model"))


def adapters(spec, name, targets, seed):
    """Random adapters of rank 2, so that they do something."""
    abstract = network(spec, name).abstract()
    made = lora.init(jax.random.key(seed), abstract, lora.LoraConfig(2, 2, targets))
    return jax.tree.map(lambda x: 0.3 * jax.random.normal(jax.random.key(x.size), x.shape), made)


@pytest.fixture(scope="module")
def files(pipe, tmp_path_factory):
    """A U-Net's adapters in both namings, and a style that adapts the text encoder, too."""
    where, spec = tmp_path_factory.mktemp("loras"), pipe.spec
    trees = {name: network(spec, name).abstract() for name in ("unet", "text_encoder")}
    net = (adapters(spec, "unet", lora.LCM_TARGETS[:1], 1), 2)
    text = (adapters(spec, "text_encoder", (r"/self_attn/q_proj$",), 2), 2)
    for naming in ("peft", "kohya"):
        lora_file.write(where / f"{naming}.safetensors", {"unet": net}, trees, naming)
    lora_file.write(where / "style.safetensors", {"unet": net, "text_encoder": text}, trees, "kohya")
    return where


def drawn(pipe, **more):
    return pipe("a red disc", steps=2, w=1.0, **more).astype(int)


def test_both_namings_are_the_same_adapters_and_strength_scales_them(pipe, files):
    plain = drawn(pipe)
    ours, theirs = (drawn(adapting.adapted(pipe, [(files / f"{n}.safetensors", 1.0)])) for n in ("peft", "kohya"))
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours - plain).max() > 1
    np.testing.assert_array_equal(drawn(adapting.adapted(pipe, [(files / "peft.safetensors", 0.0)])), plain)
    twice = adapting.adapted(pipe, [(files / "peft.safetensors", 0.4), (files / "kohya.safetensors", 0.6)])
    assert np.abs(drawn(twice) - ours).max() <= 1
    told = [[f"{n}.safetensors", s, sha256(files / f"{n}.safetensors")] for n, s in (("peft", 0.4), ("kohya", 0.6))]
    assert twice.origin["loras"] == told


def test_a_style_of_the_text_encoder_changes_captions(pipe, files):
    styled = adapting.adapted(pipe, [(files / "style.safetensors", 1.0)])
    was, now = (p.encode(["a red disc"])["context"] for p in (pipe, styled))
    assert np.abs(was - now).max() > 1e-3
    assert styled.captions.identity != pipe.captions.identity
    assert drawn(styled).shape == drawn(pipe).shape


def test_lcm_lora_makes_a_teacher_sample_in_few_steps(pipe, files):
    few = adapting.adapted(pipe, [(files / "peft.safetensors", 1.0)], few_step=True)
    assert (few.default_sampler, few.default_steps, few.default_w) == ("lcm", 4, 0.0)
    plain, guided = (few("a red disc", steps=2, w=w).astype(int) for w in (0.0, 40.0))
    assert np.abs(plain - guided).max() > 1
    assert pipe.default_sampler == "ddim"


def test_adapters_of_another_network_are_refused(pipe, tmp_path):
    other = tiny_sd.spec("sdxl")
    trees = {"text_encoder_2": network(other, "text_encoder_2").abstract()}
    path = tmp_path / "xl.safetensors"
    made = adapters(other, "text_encoder_2", (r"/self_attn/q_proj$",), 3)
    lora_file.write(path, {"text_encoder_2": (made, 2)}, trees, "peft")
    with pytest.raises(ValueError, match=r"xl.safetensors: it adapts text_encoder_2"):
        adapting.adapted(pipe, [(path, 1.0)])
    with pytest.raises(FileNotFoundError):
        adapting.adapted(pipe, [(tmp_path / "none.safetensors", 1.0)])


@pytest.mark.parametrize("given,file,strength", [("a.safetensors", "a.safetensors", 1.0), ("b/a.x:0.8", "b/a.x", 0.8)])
def test_a_file_and_its_strength(given, file, strength):
    assert adapting.parse(given) == (file, strength)


def test_a_strength_is_a_number():
    with pytest.raises(ValueError, match="neither a file nor FILE:STRENGTH"):
        adapting.parse("a.safetensors:strong")
