"""What every command shares: quiet libraries, one-line errors, flags checked before anything is imported."""

import ctypes
import glob
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from lcm_jax import cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of mallopt, malloc.h
ACCELERATORS = ("nvidia[0-9]*", "dxg", "accel[0-9]*", "vfio")  # NVIDIA's, those within Windows, TPUs
# Raised with a message for the user.
WRONG_INPUT = (ValueError, KeyError, TypeError, OSError, RuntimeError, ImportError)


def run(main: Callable[[], None]) -> None:
    """Parses the flags and calls main(); what the user can mend is said in one line, LCM_JAX_TRACE=1 shows all."""
    if not accelerated():
        os.environ.setdefault("JAX_PLATFORMS", "cpu")  # no search for absent accelerators
        keep_memory()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled()))  # what took long is compiled once
    try:
        app.run(lambda argv: guarded(main), flags_parser=parse)
    except KeyboardInterrupt:
        if os.environ.get("LCM_JAX_TRACE"):
            raise
        interrupted()


def run_around(main: Callable[[list[str]], None]) -> None:
    """run() for a command about another command: main() gets the words after --."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    command, sys.argv = sys.argv[at + 1 :], sys.argv[:at]
    if not command and not {"--help", "--helpshort", "--helpfull", "-h"} & set(sys.argv):
        stop("nothing to run: give a command after --, such as -- python -m launch.train --config ... --run ...")
    run(lambda: main(command))


def parse(argv: list[str]) -> list[str]:
    """absl's parser with one-line errors; nothing may stand on the command line but flags, --size-ids as --size_ids."""
    if "config" in flags.FLAGS:
        from launch import config_file

        config_file.check(argv[1:])
    try:
        rest = flags.FLAGS([argv[0], *map(underscored, argv[1:])])
    except (flags.Error, AttributeError, KeyError) as error:
        stop(said(error))
    if rest[1:]:
        stop(f"unexpected argument {rest[1]!r}; every setting is a --flag")
    if "out" in flags.FLAGS and flags.FLAGS.out:
        on_this_machine(flags.FLAGS.out)
    return rest


def on_this_machine(out: str) -> str:
    """The path of a folder for results; stops where it is on an object store."""
    if "://" in out:
        stop(f"{out}: results are written to this machine; give a path as --out, and copy the folder there")
    return out


def folder(flag: Any) -> None:
    """Stops where what a flag names can be no folder to write into; one on an object store is tried later."""
    if "://" not in flag.value:
        writable(flag, Path(flag.value))


def picture(flag: Any) -> None:
    """Stops where a flag names no .png, or one that cannot be written."""
    path, given = Path(flag.value), f"--{flag.name} {flag.value}"
    if path.is_dir():
        stop(f"{given} is a folder: give the name of a picture, such as {path / 'grid.png'}")
    if path.suffix.lower() != ".png":
        stop(f"{given} does not end in .png: give the name of a picture, such as {path.name}.png")
    writable(flag, path.parent)


def writable(flag: Any, where: Path) -> None:
    """Stops where a folder cannot be made, or nothing can be written into the one that is there."""
    at = next(place for place in (where, *where.absolute().parents) if os.path.lexists(place))
    given = f"--{flag.name} {flag.value}"
    if not at.is_dir():
        stop(f"{given}: {at} is a file, no folder: give another place")
    try:
        tempfile.TemporaryDirectory(prefix=".lcm_jax", dir=at).cleanup()
    except OSError as error:
        stop(f"{given}: nothing can be written in {at} ({error.strerror}): give another place")


def underscored(argument: str) -> str:
    """A flag with the hyphens inside its name as underscores; values and what is no flag stay as they are."""
    name, equals, value = argument.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else argument


def guarded(main: Callable[[], None]) -> None:
    """main() with errors as one line."""
    for name in ("absl", "jax"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        main()
    except WRONG_INPUT as error:
        if os.environ.get("LCM_JAX_TRACE"):
            raise
        stop(said(error))


def interrupted() -> NoReturn:
    """Leaves after Ctrl-C with one line, at once: threads may be busy. One of several processes tells the others."""
    print("interrupted; the same command goes on where it can", file=sys.stderr)
    for leave in getattr(sys.modules.get("lcm_jax.joining"), "LEAVES", ()):
        leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)


def said(error: BaseException) -> str:
    """An exception's own words: without the quotes a KeyError puts around them, and of the innermost one."""
    first = error.args[0] if len(error.args) == 1 else None
    if isinstance(first, BaseException):
        return said(first)
    return first if isinstance(error, KeyError) and isinstance(first, str) else str(error)


def stop(message: str) -> None:
    """Leaves with the message on one line."""
    sys.exit("error: " + " ".join(message.split()))


def options(given: list[str]) -> dict[str, Any]:
    """KEY=VALUE each, the value read as JSON where it is JSON (numbers, true, null) and as text otherwise."""
    found = {}
    for option in given:
        key, equals, value = option.partition("=")
        if not key or not equals:
            stop(f"--options takes KEY=VALUE, not {option!r}")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def weights(weights: Any, ema: Any, checkpoint: Any) -> str:
    """Which weights of a run the flags --weights and --ema name together."""
    if ema.value is None:
        return weights.value
    if checkpoint.value is None:
        stop("--ema chooses among the averages of --checkpoint; a model folder has one set of weights")
    if weights.value != "ema":
        stop(f"--ema chooses among averages, --weights {weights.value} is none: leave one of them out")
    return f"ema/{ema.value}"


def step(step: Any, checkpoint: Any) -> int | None:
    """The training step that --step names: a number, or "best", by the metric that the run's config names."""
    if step.value is None:
        return None
    if checkpoint.value is None:
        stop("--step chooses among the checkpoints of --checkpoint; a model folder has none")
    if step.value == "best":
        from lcm_jax import run_folder

        return run_folder.best_step(checkpoint.value)
    if not step.value.isdecimal():
        stop(f"--step takes the number of a step, or best, not {step.value!r}")
    return int(step.value)


def compiled() -> Path:
    """Where compiled functions are kept for the next run; JAX_COMPILATION_CACHE_DIR names another place, "" none."""
    return cache.folder() / "compiled"


def keep_memory() -> None:
    """Has glibc keep what is freed, before jax starts its threads: a step asks for the same large arrays every time.

    A fresh page costs a fault; without them the gradient of attention at 1,024 pixels takes 0.65 of the time. Nothing
    is changed where there is another C library, or where the environment tunes malloc.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    set_option = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
        set_option(option, value)


def simulate(devices: int) -> None:
    """As many devices on the host's processor, to plan for; before anything is computed."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)


def accelerated(devices: str = "/dev") -> bool:
    """Whether an accelerator's driver is there to be looked for; a container may be given any of a machine's."""
    return any(glob.glob(f"{devices}/{name}") for name in ACCELERATORS) or "TPU_NAME" in os.environ
