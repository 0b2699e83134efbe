"""The files that a reader's `folder` means: those below a folder, a pattern's, a single one, or a list of these."""

import glob
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def found(folder: str | Path | Sequence[str | Path], endings: Sequence[str]) -> list[Path]:
    """Files, those below folders with one of `endings` (such as ".tar") and sorted; a list keeps its order.

    Raises FileNotFoundError when an entry means no file.
    """
    if not isinstance(folder, str | Path):
        if not folder:
            raise FileNotFoundError("an empty list of files; name some")
        return [path for entry in folder for path in found(entry, endings)]
    if Path(folder).is_dir():
        paths = [p for p in below(Path(folder)) if p.name.endswith(tuple(endings))]
    elif Path(folder).is_file():
        paths = [Path(folder)]
    else:
        paths = sorted(p for p in map(Path, glob.glob(str(folder), recursive=True)) if p.is_file())
    if not paths:
        raise FileNotFoundError(
            f"no {' or '.join(endings)} files at {folder}; give a folder that holds some, a pattern, or a list"
        )
    return paths


def below(folder: Path) -> list[Path]:
    """All files in a folder and in those inside it, sorted; links lead to folders that are not inside it, each once."""
    found, seen, todo = [], set(), [folder]
    while todo:
        links = []
        for start in todo:
            for where, folders, files in os.walk(start):
                real = os.path.realpath(where)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                found += [Path(where) / name for name in files]
                links += [path for path in (Path(where) / name for name in folders) if path.is_symlink()]
        todo = sorted(links)
    return sorted(path for path in found if path.is_file())


def names(paths: Sequence[Path]) -> list[str]:
    """What tells files apart: their paths below the folder they share, without ending; the ending too for twins."""
    shared = os.path.commonpath([p.absolute().parent for p in paths])
    below = [p.absolute().relative_to(shared) for p in paths]
    bare = [p.with_suffix("").as_posix() for p in below]
    times = Counter(bare)
    return [name if times[name] == 1 else p.as_posix() for name, p in zip(bare, below, strict=True)]
