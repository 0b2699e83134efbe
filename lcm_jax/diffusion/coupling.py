"""How the noise of a minibatch is paired with its data: couple(z0, eps) -> eps, reordered or not."""

from lcm_jax.typing import Latent


def independent(z0: Latent, eps: Latent) -> Latent:
    """Noise as it was drawn."""
    return eps
