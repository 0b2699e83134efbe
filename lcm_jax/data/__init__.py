"""Host-side data: readers, latent shards, loader; a reader is a file here that defines `examples(..., look)`."""

import importlib
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from numbers import Real
from pathlib import Path
from typing import Any

from lcm_jax.data.example import Example
from lcm_jax.data.images import Look
from lcm_jax.settings import call, known

log = logging.getLogger(__name__)
KINDS = {bool: (bool, "true or false"), str: (str, "text"), int: (int, "a whole number"), float: (Real, "a number")}
_DEFINES_EXAMPLES = re.compile(r"^def examples\(", re.MULTILINE)


def reader_names() -> list[str]:
    """The readers that exist: modules of this folder that define `examples`, found without importing them."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return [f.stem for f in files if _DEFINES_EXAMPLES.search(f.read_text(encoding="utf-8"))]


def reader(name: str, /, **options) -> list[Example]:
    """`found`, with a warning for each line of `damage`."""
    examples = found(name, **options)
    for damage in getattr(examples, "damage", ()):
        log.warning("%s", damage)
    return examples


def found(name: str, /, **options) -> list[Example]:
    """The captioned images that the reader `name` finds; `options` are the keywords of its `examples` and of Look.

    What a damaged source could not list stands in the list's `damage`, a line each.
    Raises KeyError for an unknown reader (listing the known), ValueError for unknown or missing options and for values
    they cannot have.
    """
    examples, section = _module(name).examples, f"data reader {name!r}"
    looks = inspect.signature(Look).parameters
    parameters = {k: p for k, p in inspect.signature(examples).parameters.items() if k != "look"} | looks
    known(options, parameters, section)
    for k, value in options.items():
        kind = parameters[k].annotation
        wanted, named = KINDS.get(kind, (object, ""))
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind in (int, float)):
            raise ValueError(f"{section}: {k} is {named}, not {value!r}")
    own = {k: v for k, v in options.items() if k not in looks}
    return call(examples, section, own, look=look_of(options))


def look_of(options: Mapping[str, Any]) -> Look:
    """How the pictures are to look, of a reader's options."""
    return Look(**{f.name: options[f.name] for f in fields(Look) if f.name in options})


def attribution(name: str) -> str:
    """Whom the pictures of reader `name` are owed to and under which licence, "" when unknown."""
    return getattr(_module(name), "ATTRIBUTION", "")


def _module(name: str):
    if name not in reader_names():
        raise KeyError(f"unknown data reader {name!r}; known: {', '.join(reader_names())}")
    return importlib.import_module(f"lcm_jax.data.{name}")
