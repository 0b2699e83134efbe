"""How well pictures fit their captions, as CLIP sees it (arXiv 2104.08718, eq. 1, with weight 100).

100 max(cos, 0), averaged over pairs: the scale of the LCM paper's tables (28.69 at 4 steps) and of torchmetrics.
Hessel et al. weigh by 2.5 instead of 100. torchmetrics cuts off at 0 after averaging, not before; the two agree
unless a picture points away from its caption, which generated ones do not.
"""

import numpy as np
from jaxtyping import Float

SCALE = 100.0


def clip_scores(images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """The score of each picture and the caption of the same row, 0 to 100, from the towers' projected vectors.

    Raises ValueError for a vector that is zero or not finite.
    """
    a, b = (np.asarray(x, np.float64) for x in (images, texts))
    product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    if not (np.isfinite(product) & (product > 0)).all():
        raise ValueError("CLIP gives no direction for some pairs (zero, nan or inf): look at those images and captions")
    return SCALE * np.maximum(np.einsum("nd,nd->n", a, b) / product, 0.0)
