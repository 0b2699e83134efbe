"""The flags of a command that opens a model: which of its files are read, and what a single file does not say."""

from absl import flags

VARIANT = flags.DEFINE_string("variant", None, "Which files of a diffusers folder or hub name, such as fp16.")
KIND = flags.DEFINE_enum(
    "kind", None, ["eps", "v"], "What a single file's U-Net predicts, where the file does not say; of SD 2.x it must "
    "be told: eps, of 512 pixels, or v, of 768."
)  # fmt: skip


def how() -> dict[str, str | None]:
    """What lcm_jax.source.open_model is told."""
    return {"variant": VARIANT.value, "kind": KIND.value}
