"""Settings by name: unknown and missing ones are errors that name the section and the nearest name."""

import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any


def call(function: Callable[..., Any], section: str, *args: Any, **settings: Any) -> Any:
    """function(*args, **settings); ValueError for a setting that it does not take (with the nearest) or lacks."""
    parameters = inspect.signature(function).parameters
    known(settings, parameters, section)
    needed = [name for name, p in parameters.items() if p.default is p.empty][len(args) :]
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{section} lacks {', '.join(missing)}")
    return function(*args, **settings)


def known(given: Iterable[str], allowed: Iterable[str], section: str) -> None:
    """Raises ValueError for the first name in `given` that is not in `allowed`."""
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, list(allowed), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(allowed)}"
            raise ValueError(f"{section} has no key {name!r}; {hint}")
