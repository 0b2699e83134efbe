"""Joining a run of several processes, and leaving it so that no other waits for what will not come."""

import atexit
import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax

from lcm_jax.parallel.agreement import on_all

TIMEOUT = 300  # seconds for all processes to join: pods do not start at once
FAREWELL = 10  # seconds that a process which failed waits for the others to fail as well
LEAVES: list[Callable[[], None]] = []  # what ends this process once it has failed as one of several
COUNTS = ("JAX_NUM_PROCESSES", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
INDICES = ("JAX_PROCESS_ID", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")  # jax reads these


@contextmanager
def joined(
    coordinator: str | None = None, index: int | None = None, count: int | None = None, timeout: int | None = None
) -> Iterator[None]:
    """Within it, jax knows the devices of all processes of the run; a process that stands alone changes nothing.

    Process `index` of `count`; the first one listens at `coordinator`, "host:port". What is None is read from
    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID, or found by jax in Slurm, Open MPI 4 or Cloud TPU. Where
    not all have joined after `timeout` seconds (300) the process ends with a line that says so: jax itself would abort.
    Raises ValueError for settings that make no sense, and for one of several processes that cannot find the others.
    """
    env = os.environ
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is None and (index, count) == (None, None) and not in_cluster(env):
        if (told := told_count(env)) > 1:
            raise ValueError(
                f"this is one of {told} processes, and where the first one listens is not known: give --coordinator "
                "host:port, or set JAX_COORDINATOR_ADDRESS"
            )
        yield
        return
    if coordinator is not None:
        index, count = known("process_id", index, INDICES, env), known("process_count", count, COUNTS, env)
        check(coordinator, index, count)
        if count == 1:
            yield
            return
    elif index is not None or count is not None:
        raise ValueError("--process_id and --process_count need --coordinator host:port, where the first one listens")
    connect(coordinator, index, count, timeout or TIMEOUT)
    try:
        yield
    except BaseException as error:
        # Before jax's own, which would wait minutes for the others, and before threads are joined that wait for them.
        LEAVES.append(leaving(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1))
        getattr(threading, "_register_atexit", atexit.register)(LEAVES[-1])
        raise


def in_cluster(env: Mapping[str, str]) -> bool:
    """Whether the environment is that of one process among several, where jax finds the others by itself."""
    slurm = slurm_task(env) and int(env["SLURM_NTASKS"]) > 1
    mpi = "OMPI_MCA_orte_hnp_uri" in env and int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES", "")
    slices = int(env.get("MEGASCALE_NUM_SLICES", 1)) > 1
    return slurm or mpi or "," in hosts or slices or on_tpu_machine(env)


def told_count(env: Mapping[str, str]) -> int:
    """As one of how many processes a launcher has started this one; of Cloud TPU only the machine knows."""
    told = [name for name in COUNTS if name not in SLURM or slurm_task(env)]
    return next((int(env[name]) for name in told if env.get(name, "").isdigit()), 1)


def slurm_task(env: Mapping[str, str]) -> bool:
    """Whether this is a task that srun started, and not a Slurm job's own script."""
    return all(name in env for name in SLURM)


def on_tpu_machine(env: Mapping[str, str]) -> bool:
    """Whether this is a Cloud TPU VM, whose metadata server, not its environment, knows of the other workers."""
    if "TPU_SKIP_MDS_QUERY" in env or "TPU_WORKER_HOSTNAMES" in env or env.get("JAX_PLATFORMS") == "cpu":
        return False
    chips = os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")
    return chips and importlib.util.find_spec("libtpu") is not None


def known(flag: str, given: int | None, names: tuple[str, ...], env: Mapping[str, str]) -> int:
    """What was given, or the first of the variables that is set; ValueError if there is neither."""
    for value in (given, *(env.get(name) for name in names)):
        if value is None:
            continue
        try:
            return int(value)
        except ValueError:
            raise ValueError(f"--{flag}: {value!r} is no whole number") from None
    raise ValueError(f"a --coordinator is given but no --{flag}: give it, or set {names[0]}")


def check(coordinator: str, index: int, count: int) -> None:
    """Raises ValueError for an address without a port, or whose port is taken, and for a process outside the run."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator {coordinator!r} is no host:port, such as 10.0.0.1:8476")
    if not 0 <= index < count:
        raise ValueError(f"process {index} is none of {count}: --process_id counts from 0 to --process_count less 1")
    if index == 0 and count > 1:
        try:
            socket.create_server(("", int(port))).close()
        except OSError as error:
            why = f"process 0 cannot listen at {coordinator} ({error.strerror}): take another port"
            raise ValueError(why) from None


def connect(coordinator: str | None, index: int | None, count: int | None, timeout: int) -> None:
    """Joins the others, or ends the process with one line after `timeout` seconds."""

    def give_up() -> None:
        # jax answers a time-out with abort() and a stack of C++; this comes before it.
        print("error: " + missing(coordinator, index, count, timeout), file=sys.stderr, flush=True)
        os._exit(1)

    jax.config.update("jax_enable_preemption_service", False)  # the loop hears SIGTERM, and stops all
    if jax.config.jax_platforms == "cpu":
        share_compiled()
    patience = threading.Timer(timeout, give_up)
    patience.daemon = True
    patience.start()
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            initialization_timeout=timeout + 60,
            # Found by itself, jax gives each process of a Slurm job one GPU; told all, the process has what it sees.
            cluster_detection_method=None if coordinator is None else "deactivate",
        )
    finally:
        patience.cancel()
    on_all(True)  # all meet now: later one waits for another as long as it takes, for a first time Gloo only 30 s


def share_compiled() -> None:
    """Lets all processes on CPUs find what process 0 compiled before, or none.

    jax 0.10 and 0.11 name a compiled function by the local devices too, which only process 0 finds again; it would be
    ahead by the time of a compilation, and Gloo waits 30 s. By the kind of the devices all find the same.
    """
    try:
        from jax._src import cache_key

        cache_key._hash_accelerator_config = cache_key._hash_devices
    except (ImportError, AttributeError):  # another jax: all compile
        jax.config.update("jax_enable_compilation_cache", False)


def missing(coordinator: str | None, index: int | None, count: int | None, timeout: int) -> str:
    """Who did not come, as far as this process can tell."""
    if coordinator is None:
        return f"not all processes of the cluster joined within {timeout} s: see that each runs and reaches the first"
    if index != 0 and not answers(coordinator):
        return f"process {index} found no coordinator at {coordinator} within {timeout} s: is process 0 started there?"
    return (
        f"process {index} waited {timeout} s at {coordinator} and not all {count} processes joined: "
        "see that each was started, with an id of its own and the same count"
    )


def answers(coordinator: str) -> bool:
    """Whether something listens at host:port."""
    host, _, port = coordinator.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            return True
    except OSError:
        return False


def leaving(status: int = 1) -> Callable[[], None]:
    """What ends a process that failed: with the others where they failed as well, without them after FAREWELL seconds.

    Its exit status is `status`. The thread that says goodbye begins here: once the interpreter ends, Python 3.12
    starts none.
    """
    now = threading.Event()

    def say_goodbye() -> None:
        now.wait()
        jax.distributed.shutdown()

    goodbye = threading.Thread(target=say_goodbye, daemon=True)
    goodbye.start()

    def leave() -> None:
        now.set()
        goodbye.join(FAREWELL)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    return leave
