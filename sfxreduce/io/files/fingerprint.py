"""The state of source files in one number: it tells whether any of them was touched meanwhile."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sfxreduce.errors import SourceError

__all__ = ["source_pin"]


def source_pin(paths: Iterable[Path]) -> str:
    """Hash names, sizes and times of change of files, and of all files below folders.

    It costs a look at each file, not its bytes: it notices what programs do to files, and is no
    proof of what they hold.

    Returns
    -------
    str
        In hexadecimal.

    Raises
    ------
    SourceError
        If one of them is gone or may not be looked at.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        try:
            for name, facts in _files(path):
                digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        except OSError as error:
            raise SourceError(
                f"{error.filename or path}: cannot be looked at ({error.strerror or error}); was "
                "the source moved while it was read?"
            ) from error
    return digest.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if not path.is_dir():
        yield os.fspath(path), path.stat()
        return
    with os.scandir(path) as listed:
        entries = sorted(listed, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _files(Path(entry.path))
        else:
            yield entry.path, entry.stat()
