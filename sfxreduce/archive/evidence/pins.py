"""Pins: what every file of a run was when it was planned, and whether it still is."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from sfxreduce.archive.evidence.documents import PinnedFile
from sfxreduce.archive.rules.facts import SourcePin
from sfxreduce.archive.tape.paths import check_path
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.files.durable import sha256_file

__all__ = ["compare_pins", "pin_files", "pinned_place"]


def pin_files(path: Path) -> tuple[PinnedFile, ...]:
    """Read every file of a run, and take down size, time of change, inode and sha256.

    Parameters
    ----------
    path : Path
        A file, or a folder with all its files.

    Raises
    ------
    RunNotFound
        If nothing lies at the path.
    SchemaError
        If something below it is neither file nor folder: a link could lead anywhere.
    SourceError
        If a file cannot be read, or changed meanwhile.
    """
    try:
        pinned = tuple(_pin(path, name) for name in sorted(_names(path)))
    except FileNotFoundError as error:
        raise RunNotFound(f"{error.filename}: no such file or folder; check the path") from error
    except OSError as error:
        raise SourceError(
            f"{error.filename or path}: cannot be read ({error.strerror or error})"
        ) from error
    if not pinned:
        raise SchemaError(f"{path}: expected files, found an empty folder; is it a run?")
    return pinned


def compare_pins(path: Path, pinned: Sequence[PinnedFile], *, rehash: bool) -> SourcePin:
    """Compare a run with its pins.

    Parameters
    ----------
    rehash : bool
        Read every file, too; without it size, time of change and inode have to do.

    Returns
    -------
    SourcePin
        GONE if files are missing and what is left of them is the same.
    """
    expected = {file.path: file for file in pinned}
    try:
        there = set(_names(path)) if os.path.lexists(path) else set()
        same = there <= set(expected) and all(
            _is_same(path, expected[name], rehash=rehash) for name in sorted(there)
        )
    except (OSError, SchemaError):
        # What cannot be looked at is not known to be as it was.
        return SourcePin.CHANGED
    if not same:
        return SourcePin.CHANGED
    return SourcePin.SAME if there == set(expected) else SourcePin.GONE


def _names(path: Path) -> Iterator[str]:
    """Names of all files, below a folder or of the file itself."""
    if not path.is_dir():
        yield path.name
        return
    waiting = [path]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))
                elif entry.is_file(follow_symlinks=False):
                    yield check_path(os.path.relpath(entry.path, path), where=str(path))
                else:
                    raise SchemaError(
                        f"{entry.path}: expected a file, found a link or a device; a run that is "
                        "archived has to hold all of its bytes"
                    )


def pinned_place(path: Path, name: str) -> Path:
    """Where a pinned file of a run lies, the run being a folder or that file itself."""
    return path / name if path.is_dir() else path


def _facts(file: Path) -> tuple[int, int, int]:
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise SchemaError(f"{file}: expected a plain file; a run has to hold all of its bytes")
    return found.st_size, found.st_mtime_ns, found.st_ino


def _pin(path: Path, name: str) -> PinnedFile:
    file = pinned_place(path, name)
    before = _facts(file)
    digest = sha256_file(file)
    if _facts(file) != before:
        raise SourceError(f"{file}: changed while it was read; wait until the run is complete")
    size, mtime_ns, inode = before
    return PinnedFile(path=name, size=size, mtime_ns=mtime_ns, inode=inode, sha256=digest)


def _is_same(path: Path, pin: PinnedFile, *, rehash: bool) -> bool:
    file = pinned_place(path, pin.path)
    if _facts(file) != (pin.size, pin.mtime_ns, pin.inode):
        return False
    return not rehash or sha256_file(file) == pin.sha256
