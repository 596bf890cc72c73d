"""Pins: what every file of a run was when it was planned, and whether it still is."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sfxreduce.archive.evidence.documents import PinnedFile
from sfxreduce.archive.rules.facts import SourcePin
from sfxreduce.archive.tape.paths import check_path, folder_of
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.files.durable import sha256_file
from sfxreduce.io.store.names import MANIFEST_GROUP

if TYPE_CHECKING:
    from sfxreduce.run.run import Run

__all__ = ["compare_pins", "files_of_run", "manifest_sha256", "pin_files", "pinned_place"]


def files_of_run(run: Run, path: Path) -> tuple[str, ...]:
    """Names of the files that a run is read from, counted from its folder; see `PinnedFile`.

    Parameters
    ----------
    path : Path
        Of the run: a folder with all its files, or a file that may lead to others below its folder.

    Raises
    ------
    SchemaError
        If one of them lies elsewhere.
    """
    if path.is_dir():
        return tuple(_names(path))
    folder = path.parent.resolve()
    inputs = {source.resolve() for source in run.source.inputs}
    return tuple(
        check_path(os.path.relpath(source, folder), where=str(path)) for source in sorted(inputs)
    )


def pin_files(path: Path, names: Sequence[str] | None = None) -> tuple[PinnedFile, ...]:
    """Read every file of a run, and take down size, time of change, inode and sha256.

    Parameters
    ----------
    path : Path
        A file, or a folder with all its files.
    names : sequence of str, optional
        See `files_of_run`; without it the file alone, or all of the folder.

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
        wanted = _names(path) if names is None else names
        pinned = tuple(_pin(path, name) for name in sorted(wanted))
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
        there = set(_there(path, expected))
        same = there <= set(expected) and all(
            _is_same(path, expected[name], rehash=rehash) for name in sorted(there)
        )
    except (OSError, SchemaError):
        # What cannot be looked at is not known to be as it was.
        return SourcePin.CHANGED
    if not same:
        return SourcePin.CHANGED
    return SourcePin.SAME if there == set(expected) else SourcePin.GONE


def _there(path: Path, expected: Collection[str]) -> Iterable[str]:
    """Names of the files of a run that are left; in its folder strangers, too."""
    if path.is_dir():
        return _names(path)
    # A folder that is gone holds none of its files.
    names = expected if path.name in expected else ()
    return [name for name in names if os.path.lexists(path.parent / name)]


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


def pinned_place(path: Path, name: str, *, names: Collection[str]) -> Path:
    """Where a pinned file of a run lies.

    Parameters
    ----------
    path : Path
        Of the run, which may be gone.
    names : collection of str
        Of all its files: those of a run of one file, and of what it leads to, have its own name
        among them.
    """
    in_a_folder = path.is_dir() or path.name not in names
    return path / name if in_a_folder else path.parent / name


def _facts(file: Path) -> tuple[int, int, int]:
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise SchemaError(f"{file}: expected a plain file; a run has to hold all of its bytes")
    return found.st_size, found.st_mtime_ns, found.st_ino


def _pin(path: Path, name: str) -> PinnedFile:
    file = folder_of(path) / name
    before = _facts(file)
    digest = sha256_file(file)
    if _facts(file) != before:
        raise SourceError(f"{file}: changed while it was read; wait until the run is complete")
    size, mtime_ns, inode = before
    return PinnedFile(path=name, size=size, mtime_ns=mtime_ns, inode=inode, sha256=digest)


def _is_same(path: Path, pin: PinnedFile, *, rehash: bool) -> bool:
    file = folder_of(path) / pin.path
    if _facts(file) != (pin.size, pin.mtime_ns, pin.inode):
        return False
    return not rehash or sha256_file(file) == pin.sha256


def manifest_sha256(hits: Path) -> str:
    """Hash of the manifest of a reduced store, which changes with any of its files; empty if the
    store has none.
    """
    try:
        return sha256_file(hits / MANIFEST_GROUP / "zarr.json")
    except OSError:
        return ""
