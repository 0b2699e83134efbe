"""The flags of a command that opens a model: which of its files are read, and what it does not say of itself."""

from absl import flags

VARIANT = flags.DEFINE_string("variant", None, "Which files of a diffusers folder or hub name, such as fp16.")
KIND = flags.DEFINE_enum(
    "kind", None, ["eps", "v"], "What a single file's U-Net predicts, where the file does not say; of SD 2.x it must "
    "be told: eps, of 512 pixels, or v, of 768."
)  # fmt: skip
EMPTY_CAPTION = flags.DEFINE_enum(
    "empty_caption", None, ["zeros", "encoded"], "What the empty caption is to a model with CLIP: zeros, as to SDXL "
    "base, or what its encoders make of ''. By default as the model says."
)  # fmt: skip


def given() -> bool:
    """Whether any of these flags is on the command line."""
    return VARIANT.present or KIND.present or EMPTY_CAPTION.present


def how() -> dict[str, str | None]:
    """What lcm_jax.source.open_model is told."""
    return {"variant": VARIANT.value, "kind": KIND.value, "empty_caption": EMPTY_CAPTION.value}
