"""Settings by name: unknown and missing ones are errors that name the section and the nearest name."""

import difflib
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

ABSENT = object()  # unlike None, which a key may have


def call(function: Callable[..., Any], section: str, settings: Mapping[str, Any], **given: Any) -> Any:
    """function(**settings, **given).

    Raises ValueError for a setting that it does not take (with the nearest), that it lacks, or that is `given`.
    """
    if twice := [name for name in settings if name in given]:
        raise ValueError(f"{section} has {twice[0]!r}, which is given to it from elsewhere: leave it out")
    parameters = {name: p for name, p in inspect.signature(function).parameters.items() if name not in given}
    known(settings, parameters, section)
    if missing := [name for name, p in parameters.items() if p.default is p.empty and name not in settings]:
        raise ValueError(f"{section} lacks {', '.join(missing)}")
    return function(**settings, **given)


def known(given: Iterable[str], allowed: Iterable[str], section: str) -> None:
    """Raises ValueError for the first name in `given` that is not in `allowed`."""
    for name in given:
        if name not in allowed:
            near = difflib.get_close_matches(name, list(allowed), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(allowed)}"
            raise ValueError(f"{section} has no key {name!r}; {hint}")


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What a config says otherwise than one before, key by key: "seed (was 0, is 1)"."""
    if isinstance(before, dict) and isinstance(now, dict):
        below = f"{name}." if name else ""
        return [d for k in {**before, **now} for d in differences(before.get(k, ABSENT), now.get(k, ABSENT), below + k)]
    shown = lambda value: "not there" if value is ABSENT else json.dumps(value)
    return [] if before == now else [f"{name} (was {shown(before)}, is {shown(now)})"]
