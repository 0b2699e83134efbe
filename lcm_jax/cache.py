"""Where this machine keeps what was fetched, copied, compiled or measured once."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder() -> Path:
    """$LCM_JAX_CACHE, else lcm_jax in $XDG_CACHE_HOME, else ~/.cache/lcm_jax."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lcm_jax"
    return Path(os.environ.get("LCM_JAX_CACHE") or usual).expanduser()


def once(where: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `where`, filled on first use; it appears at once and complete, so that nobody sees it half-made."""
    if where.is_dir():
        return where
    where.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=where.parent) as scratch:
        ready = Path(scratch) / where.name
        ready.mkdir()
        fill(ready)
        try:
            ready.rename(where)
        except OSError:
            if not where.is_dir():  # another process was first: its folder is as good as ours
                raise
    return where
