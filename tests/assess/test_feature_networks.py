"""Feature networks by name: weights from any file are one network, rows go over all devices."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from lcm_jax.assess import feature_networks, inception_weights
from lcm_jax.assess.inception_weights import convert, hash_of, open_inception
from lcm_jax.assess.spread import spread
from lcm_jax.evaluate.features import extract
from lcm_jax.evaluate.precision_recall import precision_recall
from lcm_jax.models.inception import InceptionConfig, inception
from lcm_jax.weights.bijection import to_torch

TINY = InceptionConfig(size=75, narrow=16)


def weights(config, seed=0):
    """Random parameters; variances are positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), inception(config).abstract())


@pytest.fixture
def tiny_network(monkeypatch):
    """All files hold networks of TINY's sizes, so that none is 87 MB."""
    tiny = lambda classes=None, size=75, narrow=16: InceptionConfig(size, classes, narrow)
    monkeypatch.setattr(inception_weights, "InceptionConfig", tiny)


def checkpoint(path, params):
    torch = pytest.importorskip("torch")
    tensors = {key: torch.tensor(value) for key, value in to_torch(params).items()}
    tensors["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    torch.save(tensors, path)
    return path


def test_a_checkpoint_its_conversion_and_their_hashes(tiny_network, tmp_path):
    with_classes = dataclasses.replace(TINY, classes=7)
    params = weights(with_classes)
    source = checkpoint(tmp_path / "pt_inception.pth", params)
    config, read = open_inception(source)
    assert config == with_classes
    jax.tree.map(np.testing.assert_array_equal, read, params)

    out = convert(source, tmp_path / "converted")
    said = json.loads((out / "model.json").read_text())
    assert said["source"]["file"] == "pt_inception.pth" and len(said["source"]["sha256"]) == 64
    config, again = open_inception(out)
    assert config == with_classes and said["hash"] == hash_of(config, params)
    jax.tree.map(np.testing.assert_array_equal, again, params)
    convert(source, out)  # again, over itself

    # The classifier is no part of what features depend on; any weight and the size are.
    trunk = {name: branch for name, branch in params.items() if name != "fc"}
    assert hash_of(TINY, trunk) == said["hash"]
    others = [hash_of(TINY, weights(TINY, 1)), hash_of(dataclasses.replace(TINY, size=80), trunk)]
    assert len({said["hash"], *others}) == 3


def test_what_is_not_the_network_is_refused(tiny_network, tmp_path):
    out = convert(checkpoint(tmp_path / "a.pth", weights(TINY)), tmp_path / "out")
    other = checkpoint(tmp_path / "b.pth", {"x": {"kernel": np.ones((2, 3), np.float32)}})
    with pytest.raises(ValueError, match=r"b\.pth is not FID's Inception: .*missing"):
        open_inception(other)
    with pytest.raises(FileNotFoundError, match="no file .*absent"):
        open_inception(tmp_path / "absent")
    (out / "notes").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files, first notes"):
        convert(tmp_path / "a.pth", out)
    (tmp_path / "other").mkdir()
    convert(checkpoint(tmp_path / "c.pth", weights(TINY, 1)), tmp_path / "other")
    (tmp_path / "other" / "inception.safetensors").rename(out / "inception.safetensors")
    with pytest.raises(ValueError, match=r"is not what model\.json describes"):
        open_inception(out)
    said = json.loads((out / "model.json").read_text())
    (out / "model.json").write_text(json.dumps(said | {"kind": "lcm"}))
    with pytest.raises(ValueError, match="holds a 'lcm' model"):
        open_inception(out)


def test_names_and_paths(monkeypatch, tiny_network, tmp_path):
    with pytest.raises(ValueError, match="unknown feature network 'vgg'; choose one of inception, mobilenetv2"):
        feature_networks.feature_network("vgg")
    with pytest.raises(ValueError, match="mobilenetv2 takes no weights"):
        feature_networks.feature_network("mobilenetv2=x")
    params = weights(TINY)
    net = feature_networks.feature_network(f"inception={checkpoint(tmp_path / 'a.pth', params)}")
    assert (net.name, net.hash) == ("Inception", hash_of(TINY, params)) and "TensorFlow 1" in net.resize
    images = np.random.default_rng(0).integers(0, 256, (11, 20, 30, 3), dtype=np.uint8)
    features = extract(net, images, 8)
    assert features.shape == (11, 128) and features.std() > 0
    # Inception features go into precision and recall like any other: of a set among itself all are covered.
    assert precision_recall(features, features[::-1], 3) == (1.0, 1.0)


@pytest.mark.parametrize("n", [1, 5, 8, 16])
def test_rows_go_over_all_devices_and_come_back_in_order(n):
    apply = spread(lambda params, rows: rows * params["gain"], {"gain": np.float32(3)})
    rows = np.random.default_rng(0).standard_normal((n, 2)).astype(np.float32)
    out = apply(rows)
    if n % jax.local_device_count() == 0:
        seen = {shard.device for shard in out.addressable_shards}
        assert len(seen) == jax.local_device_count() == 8
    np.testing.assert_array_equal(np.asarray(out), rows * 3)
