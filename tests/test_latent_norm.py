"""Folding latent statistics into an autoencoder: same pictures, latents of unit variance."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from lcm_jax import latent_norm, run_folder
from lcm_jax.models import presets
from lcm_jax.models.autoencoder import autoencoder


@pytest.fixture(scope="module")
def made():
    net = autoencoder(presets.AUTOENCODERS["tiny"])
    params = jax.jit(net.init)(jax.random.key(0))
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), np.uint8)
    batches = [images[:8], images[8:16], images[16:]]
    mean, std = latent_norm.statistics(net, params, batches)
    return net, params, images, mean, std


def moments(net, params, images):
    x = jnp.asarray(images, jnp.float32) / 127.5 - 1
    return np.split(np.asarray(net.apply(params, x, method="encode"), np.float64), 2, axis=-1)


def test_statistics_are_those_of_posterior_samples(made):
    net, params, images, mean, std = made
    mu, logvar = moments(net, params, images)
    n = np.random.default_rng(1).normal(size=(400, *mu.shape))
    samples = mu + np.exp(0.5 * logvar) * n
    np.testing.assert_allclose(mean, samples.mean((0, 1, 2, 3)), atol=0.02)
    np.testing.assert_allclose(std, samples.std((0, 1, 2, 3)), rtol=0.02)


def test_folded_latents_have_zero_mean_and_unit_variance(made):
    net, params, images, mean, std = made
    folded = latent_norm.fold(params, mean, std)
    again = latent_norm.statistics(net, folded, [images])
    np.testing.assert_allclose(again[0], 0, atol=1e-5)
    np.testing.assert_allclose(again[1], 1, atol=1e-5)


def test_every_training_image_is_measured(made, monkeypatch):
    net, params, images, mean, std = made
    monkeypatch.setattr(run_folder, "training_images", lambda: SimpleNamespace(pixels=images))
    monkeypatch.setattr(run_folder, "MEASURED", 10)  # of 24 images
    folded = run_folder.normalised(tiny.spec("autoencoder"), params, {})
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), folded, latent_norm.fold(params, mean, std))


def test_folding_changes_no_reconstruction(made):
    net, params, images, mean, std = made
    folded = latent_norm.fold(params, mean, std)
    before = net.apply(params, jnp.asarray(moments(net, params, images)[0], jnp.float32), method="decode")
    after = net.apply(folded, jnp.asarray(moments(net, folded, images)[0], jnp.float32), method="decode")
    np.testing.assert_allclose(before, after, atol=1e-4)
