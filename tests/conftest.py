"""Every test: eight host devices, strict ranks, array shapes checked, nothing cached between runs."""

import logging
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("MPLBACKEND", "agg")

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_enable_compilation_cache", False)

from jaxtyping import install_import_hook  # noqa: E402

# Installed before the first import of the package: every annotation there is checked from here on.
install_import_hook("lcm_jax", "beartype.beartype")

for name in ("absl", "orbax", "jax", "matplotlib", "PIL"):
    logging.getLogger(name).setLevel(logging.WARNING)
