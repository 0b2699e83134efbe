"""Names of tensors in older diffusers files, where they differ from today's."""

from collections.abc import Callable, Iterable

_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def autoencoder_names(keys: Iterable[str]) -> Callable[[str], str]:
    """The `rename` of weights.bijection for an AutoencoderKL file with these keys.

    Stable Diffusion's own files name the maps of the mid block's attention query, key, value, proj_attn;
    newer files have to_q, to_k, to_v, to_out.0.
    """
    old = any(key.endswith(".proj_attn.weight") for key in keys)

    def rename(key: str) -> str:
        head, mark, part = key.partition(".attentions.0.")
        name, _, leaf = part.rpartition(".")
        return f"{head}{mark}{_OLD_ATTENTION[name]}.{leaf}" if old and name in _OLD_ATTENTION else key

    return rename
