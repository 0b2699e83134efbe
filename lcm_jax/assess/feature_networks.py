"""The feature networks that scores may look through, by name, with their published weights."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict

import jax.numpy as jnp

from lcm_jax.assess.inception_weights import hash_of, open_inception
from lcm_jax.assess.spread import spread
from lcm_jax.evaluate.features import FeatureNet
from lcm_jax.models.inception import inception as inception_net
from lcm_jax.models.vision import UNUSED_KEYS, VisionConfig, mobilenet_v2
from lcm_jax.weights.bijection import from_torch
from lcm_jax.weights.fetch import MOBILENET, fetch
from lcm_jax.weights.torch_pickle import read_torch


def mobilenetv2(weights: str | None = None) -> FeatureNet:
    """MobileNetV2 on ImageNet, 1280 numbers an image; its weights are fetched on first use."""
    if weights is not None:
        raise ValueError(f"mobilenetv2 takes no weights ({weights}): only its published ones are supported")
    config = VisionConfig()
    net = mobilenet_v2(config)
    (path,) = fetch(MOBILENET).iterdir()
    params = from_torch(read_torch(path), net.abstract(), ignore=UNUSED_KEYS)
    identity = MOBILENET.sha256 + json.dumps(asdict(config))
    return FeatureNet(
        name="MobileNetV2",
        hash=hashlib.sha256(identity.encode()).hexdigest()[:16],
        apply=spread(lambda params, pixels: net.apply(params, pixels.astype(jnp.float32) / 127.5 - 1.0), params),
        resize=f"shrunk to {config.size} px if larger (linear, antialiased), never enlarged",
    )


def inception(weights: str | None = None) -> FeatureNet:
    """FID's Inception of 2015, 2048 numbers an image; `weights` as `open_inception` takes them, else fetched."""
    config, params = open_inception(weights)
    net = inception_net(config)
    return FeatureNet(
        name="Inception",
        hash=hash_of(config, params),
        apply=spread(net.apply, params),
        resize=f"TensorFlow 1 bilinear to {config.size} px, corner on corner, no antialiasing",
    )


NETWORKS: dict[str, Callable[[str | None], FeatureNet]] = {"inception": inception, "mobilenetv2": mobilenetv2}


def feature_network(name: str) -> FeatureNet:
    """The network of that name, or of "name=PATH" with weights of one's own; ValueError lists the names."""
    name, _, weights = name.partition("=")
    if name not in NETWORKS:
        raise ValueError(f"unknown feature network {name!r}; choose one of {', '.join(NETWORKS)}")
    return NETWORKS[name](weights or None)
