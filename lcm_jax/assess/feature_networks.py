"""The feature networks that scores may look through, by name, with their published weights."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import jax
import jax.numpy as jnp

from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.models.vision import UNUSED_KEYS, VisionConfig, mobilenet_v2
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.fetch import MOBILENET, fetch
from lcm_jax.weights.torch_pickle import read_torch


def mobilenetv2() -> FeatureNet:
    """MobileNetV2 on ImageNet, 1280 numbers an image; its weights are fetched on first use."""
    config = VisionConfig()
    net = mobilenet_v2(config)
    (path,) = fetch(MOBILENET).iterdir()
    params = jax.device_put(from_torch(read_torch(path), net.abstract(), ignore=UNUSED_KEYS))
    compiled = jax.jit(lambda params, pixels: net.apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0))
    identity = MOBILENET.sha256 + json.dumps(asdict(config))
    name_hash = hashlib.sha256(identity.encode()).hexdigest()[:16]
    return FeatureNet("MobileNetV2", name_hash, lambda pixels: compiled(params, pixels))


NETWORKS: dict[str, Callable[[], FeatureNet]] = {"mobilenetv2": mobilenetv2}


def feature_network(name: str) -> FeatureNet:
    """The network of that name; ValueError lists the names."""
    if name not in NETWORKS:
        raise ValueError(f"unknown feature network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name]()
