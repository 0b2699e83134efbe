"""The file that --config names and the keys that --config.KEY changes, looked at before absl reads them."""

import difflib
import re
import sys
import traceback
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from launch import entry

EXAMPLE = "give a Python file with a get_config(), such as configs/emoji_lcd.py"
MODULE = "config_config"  # the name that ml_collections gives it


def check(argv: list[str]) -> None:
    """Stops where --config names no config, or --config.KEY no key of it."""
    given = named(argv)
    if given is None:
        return
    config = loaded(given)
    for argument in argv:
        if changed := re.match(r"--?(?:no)?config\.([^=]+)", argument):
            check_key(config, changed[1])


def named(argv: list[str]) -> str | None:
    """What --config is given on a command line."""
    for at, argument in enumerate(argv):
        if found := re.fullmatch(r"--?config(?:=(.*))?", argument):
            return found[1] if found[1] is not None else next(iter(argv[at + 1 :]), None)
    return None


def loaded(given: str) -> ConfigDict:
    """The config of FILE or FILE:PRESET; stops with one line where there is none."""
    path, _, preset = given.partition(":")  # as ml_collections reads it
    if not Path(path).is_file():
        entry.stop(f"config file {path} " + ("is a folder: " if Path(path).is_dir() else "does not exist: ") + EXAMPLE)
    spec = spec_from_file_location(MODULE, path, loader=SourceFileLoader(MODULE, path))
    sys.modules[MODULE] = module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(*filter(None, [preset]))
    except Exception as error:
        entry.stop(problem(error, path, preset))
    if not isinstance(config, ConfigDict):
        entry.stop(f"config file {path}: get_config() returns {type(config).__name__}: have it return a ConfigDict")
    return config


def problem(error: BaseException, path: str, preset: str) -> str:
    """One line for what a config file raised: where, what, and what to do."""
    if isinstance(error, SyntaxError):
        return f"config file {error.filename}, line {error.lineno}: {error.msg}: mend it, or {EXAMPLE}"
    own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    if not own and isinstance(error, AttributeError):
        return f"config file {path} has no get_config(): {EXAMPLE}"
    if not own and preset and isinstance(error, TypeError):
        return f"config file {path} takes no preset: leave :{preset} out"
    if preset and isinstance(error, ValueError):
        return entry.said(error)
    line = f", line {own[-1]}" if own else ""
    return f"config file {path}{line}: {type(error).__name__}: {entry.said(error)}: mend it, or {EXAMPLE}"


def check_key(config: Any, key: str) -> None:
    """Stops where a config has no such key, with the nearest; what is no dict is absl's to judge."""
    section = "config"
    for name in key.split("."):
        if not isinstance(config, ConfigDict) or "[" in name:
            return
        if name not in config:
            near = difflib.get_close_matches(name, list(config), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(config)}"
            entry.stop(f"{section} has no key {name!r}; {hint}")
        config, section = config.get(name), f"{section}.{name}"
