"""Every test: eight host devices, strict ranks, array shapes checked, one cache of compiled functions a run."""

import atexit
import gc
import logging
import os
import shutil
import tempfile
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("MPLBACKEND", "agg")
# What is computed here is small: compiling is the work. Less optimisation, and what one test, process or command
# compiled serves all others of this run.
FLAGS = ["--xla_backend_optimization_level=0"]
if version("jaxlib") < "0.11":  # newer ones end on a flag they do not know
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers and commands inherit the folder
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lcm_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

# Tracing makes millions of objects that stay: to look through them again and again takes a tenth of the time.
gc.set_threshold(100_000, 50, 1000)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from jaxtyping import install_import_hook  # noqa: E402

# Installed before the first import of the package: every annotation there is checked from here on.
install_import_hook("lcm_jax", "beartype.beartype")

for name in ("absl", "orbax", "jax", "matplotlib", "PIL"):
    logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture
def agree(record_property):
    """(what, difference, limit): asserts that we agree with PyTorch, and keeps both for benchmarks.parity."""

    def check(what, difference, limit):
        record_property(what, f"{float(difference)} {limit}")
        assert difference < limit, what

    return check
