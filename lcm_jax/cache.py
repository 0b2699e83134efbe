"""Where this machine keeps what was fetched, copied, compiled or measured once."""

import os
from pathlib import Path


def folder() -> Path:
    """$LCM_JAX_CACHE, else lcm_jax in $XDG_CACHE_HOME, else ~/.cache/lcm_jax."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcm_jax"
    return Path(os.environ.get("LCM_JAX_CACHE") or usual).expanduser()
