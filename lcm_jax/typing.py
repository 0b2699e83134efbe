"""Names for the arrays and callables that travel through the house."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float, Num

Latent = Float[Array, "b *latent"]  # any rank: images are [b, h, w, c], exact-truth tests use [b, d]
Times = Num[Array, " b"]  # int table index on a VP path, sigma on a VE path
Guidance = Float[Array, " b"]  # w of LCM: cond + w (cond - uncond)
PerSample = Float[Array, " b"]
Condition = Mapping[str, Any]  # what a captioned network is told, by its keyword: context[, pooled, time_ids]

Params = Mapping[str, Any]  # nested dicts of arrays
Batch = Mapping[str, Any]
Metrics = dict[str, Any]
Field = Callable[[Latent, Times], Any]  # (z, t) -> diffusion.path.Prediction, all else bound
PairWeight = Callable[[Times, Times], PerSample]  # (t, s) -> lambda
Coupling = Callable[[Latent, Latent], tuple[Latent, Metrics]]  # (z0, eps) -> eps paired with z0, what to log
