"""Encoded folders of the small set, made anew for each test."""

import pytest
from small_set import SIZE, Encoders, make_examples

from lcm_jax.data.encode import encode


@pytest.fixture
def encoders() -> Encoders:
    return Encoders()


@pytest.fixture
def make(tmp_path, encoders):
    """make(n, **overrides) -> (folder, manifest) of an encoded set of n examples."""

    def make_folder(n: int = 40, name: str = "latents", **overrides):
        options = {"batch_size": 8, "shard_size": 10, "identity": {"vae": "patches"}, "progress": False}
        out = tmp_path / name
        made = encode(make_examples(n), encoders.images, encoders.text, out, SIZE, **{**options, **overrides})
        return out, made

    return make_folder
