"""Rehearses a run of several processes on this machine: each with its own simulated devices, joined by Gloo.

    python -m launch.local_cluster --processes 2 --devices 4 -- python -m launch.train --config ... --run ...

Lines are prefixed by process. SIGTERM and Ctrl-C go to all; where one fails the others are ended, and so is this.
"""

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from absl import flags

from launch import entry

PROCESSES = flags.DEFINE_integer("processes", 2, "How many processes.", lower_bound=1)
DEVICES = flags.DEFINE_integer("devices", 1, "Devices of each process.", lower_bound=1)
PORT = flags.DEFINE_integer("port", None, "Where process 0 listens; by default any free port.")
PRINT = flags.DEFINE_bool("print", False, "Show what would be started, and start nothing.")
GRACE = 3.0  # seconds between the end of one that failed and that of the others: time to say why


def main(command: list[str]) -> None:
    port = PORT.value or free_port()
    own = [variables(index, PROCESSES.value, DEVICES.value, port) for index in range(PROCESSES.value)]
    if PRINT.value:
        for each in own:
            print(" ".join(f"{name}={value}" for name, value in each.items()), shlex.join(command))
        return
    sys.exit(run(command, own))


def variables(index: int, count: int, devices: int, port: int) -> dict[str, str]:
    """What the environment tells one of the processes."""
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "5",
    }


def run(command: list[str], own: list[dict[str, str]]) -> int:
    """Runs the command once with each of the environments; the exit status of the first that fails, 0 if none does."""
    started = []
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: tell(started, number))
        for each in own:  # in sessions of their own: Ctrl-C reaches them once, from here
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
            started.append(subprocess.Popen(command, env={**os.environ, **each}, **pipes))
        readers = [
            threading.Thread(target=copy, args=(pipe, out, f"[{index}] ".encode()))
            for index, process in enumerate(started)
            for pipe, out in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
        ]
        for reader in readers:
            reader.start()
        status = watch(started)
        for reader in readers:
            reader.join()
        return status
    except FileNotFoundError as error:
        entry.stop(f"there is no command {error.filename}")
    finally:
        tell(started, signal.SIGKILL)


def watch(started: list[subprocess.Popen]) -> int:
    """Waits until all have ended; once one has failed the others have GRACE seconds, none once a signal ended one."""
    failed, until = 0, None
    while any(process.poll() is None for process in started):
        codes = [process.poll() for process in started]
        if not failed and any(codes):
            failed = next(filter(None, codes))
            until = time.monotonic() + (GRACE if failed > 0 else 0)
        if until is not None and time.monotonic() > until:
            tell(started, signal.SIGKILL)
        time.sleep(0.05)
    failed = failed or next(filter(None, (process.poll() for process in started)), 0)
    return failed if failed >= 0 else 128 - failed


def tell(started: list[subprocess.Popen], number: int) -> None:
    """Sends a signal to those that still run."""
    for process in started:
        if process.poll() is None:
            process.send_signal(number)


def copy(pipe: IO[bytes], out: IO[bytes], prefix: bytes) -> None:
    """Copies lines with a prefix; a bar's every state is one."""
    for line in pipe:
        for part in line.replace(b"\r", b"\n").splitlines():
            if part.strip():
                out.write(prefix + part + b"\n")
        out.flush()


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


if __name__ == "__main__":
    entry.run_around(main)
