"""Reads the keys of a diffusers config, or says which one is not supported, its value and what is."""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

Config = Mapping[str, Any]


def read(config: Config, name: str, sized: Config, fixed: Config, unread: Sequence[str], source: str) -> dict[str, Any]:
    """A config of the class `name` with the defaults of `sized` filled in.

    Each key is one of `sized`, has in `fixed` its only possible values (a list of equal entries counts as its
    entry), or is one of `unread`; keys with a leading underscore are diffusers' own notes. ValueError otherwise.
    """
    if (found := config.get("_class_name", name)) != name:
        refuse(source, "_class_name", found, name)
    for key, value in config.items():
        if key in fixed:
            if collapse(value) not in fixed[key]:
                refuse(source, key, value, " or ".join(map(repr, fixed[key])))
        elif not (key in sized or key in unread or key.startswith("_")):
            raise ValueError(f"{source} has {key} = {value!r}, which is not supported: no such setting is known here")
    return {**sized, **config}


def refuse(source: str, key: str, value: Any, supported: str) -> NoReturn:
    """Raises the ValueError for a value that is not supported."""
    raise ValueError(f"{source} has {key} = {value!r}, which is not supported here; supported: {supported}")


def collapse(value: Any) -> Any:
    """The entry of a list whose entries are all equal, anything else as it is."""
    same = isinstance(value, list | tuple) and value and all(entry == value[0] for entry in value)
    return value[0] if same else value


def count(config: Config, key: str, source: str) -> int:
    """One positive whole number, also where it stands once a level."""
    value = collapse(config[key])
    if type(value) is not int or value < 1:
        refuse(source, key, config[key], "one positive whole number")
    return value


def per_level(config: Config, key: str, levels: int, source: str) -> tuple[int, ...]:
    """A positive whole number for each level."""
    value = config[key]
    entries = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
    if len(entries) != levels or not all(type(entry) is int and entry > 0 for entry in entries):
        refuse(source, key, value, f"a positive whole number or a list of {levels}, one a level")
    return entries


def which_levels(config: Config, key: str, yes: str, no: str | None, source: str) -> tuple[bool, ...]:
    """Which levels have the type `yes`; the others must have `no`."""
    value = config[key]
    if not isinstance(value, list | tuple) or not value or not all(entry in (yes, no) for entry in value):
        refuse(source, key, value, f"a list of {' and '.join(filter(None, (yes, no)))}")
    return tuple(entry == yes for entry in value)
