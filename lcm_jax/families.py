"""The published Stable Diffusion models, as one plans for them before their weights are there."""

from lcm_jax.models import presets
from lcm_jax.models.clip_text import CLIP_TEXT, ClipTextConfig
from lcm_jax.models.spec import ModelSpec, PathSpec, TextSpec

_SD15_TEXT = TextSpec("clip", 77, (CLIP_TEXT["sd15"],))
_SD21_TEXT = TextSpec("clip", 77, (CLIP_TEXT["sd21"],))
_SDXL_TEXT = TextSpec("clip", 77, (ClipTextConfig(), CLIP_TEXT["sdxl2"]), zero_empty=True)
_UNETS, _KL = presets.UNETS, presets.AUTOENCODERS


FAMILIES = {
    "sd15": ModelSpec("diffusion", "eps", 512, _UNETS["sd15"], _KL["sd"], PathSpec(), _SD15_TEXT),
    "sd21_base": ModelSpec("diffusion", "eps", 512, _UNETS["sd21"], _KL["sd"], PathSpec(), _SD21_TEXT),
    "sd21_768": ModelSpec("diffusion", "v", 768, _UNETS["sd21"], _KL["sd"], PathSpec(), _SD21_TEXT),
    "sdxl": ModelSpec("diffusion", "eps", 1024, _UNETS["sdxl"], _KL["sdxl"], PathSpec(), _SDXL_TEXT),
}
