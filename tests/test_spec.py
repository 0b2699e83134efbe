import dataclasses
import json

import pytest
import tiny

from lcm_jax.models.autoencoder import AutoencoderConfig
from lcm_jax.models.spec import ModelSpec, PathSpec, build


@pytest.mark.parametrize("role", ["autoencoder", "diffusion", "consistency"])
def test_a_spec_survives_json(role):
    spec = tiny.spec(role, about={"attribution": ["someone"]})
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_latents_are_the_image_divided_by_the_autoencoders_factor():
    assert tiny.spec().latent_shape == (2, 2, 4)
    with pytest.raises(ValueError, match="image_size 20 is no multiple of 8"):
        tiny.spec(image_size=20)


def test_eps_at_zero_terminal_snr_is_refused_and_v_is_not():
    path = PathSpec(zero_terminal_snr=True)
    assert tiny.spec(path=path).kind == "v"
    with pytest.raises(ValueError, match="zero terminal SNR: set kind to v or x0"):
        dataclasses.replace(tiny.spec(path=path), kind="eps")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": 2}, "m.json has format 2, this version reads 1"),
        ({"imagesize": 3}, "m.json has an unknown key 'imagesize'; did you mean 'image_size'"),
        ({"xyzzy": 3}, "unknown key 'xyzzy'; it knows: role, kind"),
        ({"role": "student"}, "role is 'student'; choose one of 'autoencoder', 'diffusion', 'consistency'"),
        ({"image_size": "64"}, "image_size is '64', not of type int"),
        ({"image_size": True}, "image_size is True, not of type int"),
        ({"unet": {"wide": 1}}, "m.json: unet has an unknown key 'wide'"),
        ({"path": {"zero_terminal_snr": 1}}, "zero_terminal_snr is 1, not of type bool"),
        ({"guidance": {"w_min": 0.0}}, "guidance lacks w_max"),
    ],
)
def test_a_wrong_description_is_named(change, message):
    with pytest.raises(ValueError) as raised:
        ModelSpec.from_json({**tiny.spec().to_json(), **change}, "m.json")
    assert message in str(raised.value)


def test_whole_numbers_stand_for_floats_and_lists_for_tuples():
    made = build(AutoencoderConfig, {"scale": 1, "channels": [8, 8]}, "x")
    assert made.scale == 1.0 and isinstance(made.scale, float) and made.channels == (8, 8)
