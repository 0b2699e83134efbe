"""Text files as their makers meant them: UTF-8, with or without a byte-order mark, a line a row."""

from pathlib import Path


def read(path: str | Path) -> str:
    """The text of a file, line ends as "\\n"; ValueError naming the file where it is not UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it so") from None


def lines(path: str | Path) -> list[str]:
    """Its lines; what else Unicode has for ends of lines stays within them, as JSON allows."""
    return read(path).split("\n")
