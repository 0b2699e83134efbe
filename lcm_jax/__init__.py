"""lcm_jax: latent consistency models in JAX, from a diffusion teacher to 1-4 step images."""

__version__ = "0.1.0"
