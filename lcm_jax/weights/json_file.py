"""Reads JSON objects from files that others wrote."""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in a JSON file; ValueError names a file that holds none, with the remedy ("download it again")."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): {remedy}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: {remedy}")
    return content
