"""Many files named at once: a folder, a glob that the shell left alone, or a list."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Collection
from pathlib import Path

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.files.safe_read import read_small

__all__ = ["expand_input", "natural_order"]

LIST = "@"
WILD = "*?["
ZARR_METADATA = ("zarr.json", ".zgroup", ".zarray")
MASTER = "_master.h5"

MOST_LIST_BYTES = 64 << 20
"""Longest list: some million names."""


def expand_input(path: Path, kinds: Collection[tuple[str, ...]]) -> list[Path]:
    """Files that one name of an input stands for, in natural order, or in that of a list.

    Parameters
    ----------
    path : Path
        A file or a store, which stand for themselves; a folder of files of one kind; a glob; or
        ``@`` and the name of a list, one path a line, as seen from the working folder.
    kinds : collection of tuple of str
        Endings of names, of each kind of file.

    Raises
    ------
    RunNotFound
        If it stands for no file.
    SourceError
        If the list or the folder cannot be read.
    SchemaError
        If a folder has files of several kinds, or parts of files that a master names.
    """
    if os.path.lexists(path):
        is_store = not path.is_dir() or any((path / name).exists() for name in ZARR_METADATA)
        return [path] if is_store else _in_folder(path, kinds)
    if path.name.startswith(LIST) or str(path).startswith(LIST):
        return _listed(Path(str(path).partition(LIST)[2]))
    if not any(sign in str(path) for sign in WILD):
        return [path]
    # That of pathlib would take in hidden files, which nobody means.
    found = [Path(name) for name in glob.glob(str(path))]  # noqa: PTH207
    if not found:
        raise RunNotFound(f"{path}: no file has such a name; check the path given to --in")
    return sorted(found, key=natural_order)


def natural_order(path: Path | str) -> list[tuple[int, str]]:
    """Key by which 9 comes before 10.

    Examples
    --------
    >>> sorted(["f10.cbf", "f9.cbf", "f1.cbf"], key=natural_order)
    ['f1.cbf', 'f9.cbf', 'f10.cbf']
    """
    parts = re.split(r"([0-9]+)", str(path))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _in_folder(folder: Path, kinds: Collection[tuple[str, ...]]) -> list[Path]:
    """Files of the only kind that a folder has."""
    try:
        names = sorted(folder.iterdir(), key=natural_order)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed ({error.strerror})") from error
    files = [path for path in names if not path.name.startswith(".") and path.is_file()]
    found = [[path for path in files if path.name.lower().endswith(endings)] for endings in kinds]
    several = [of_kind for of_kind in found if of_kind]
    if not several:
        # It may be a store that lost its metadata: what reads stores says what is wrong.
        return [folder]
    if len(several) > 1:
        named = " and ".join(of_kind[0].name for of_kind in several)
        raise SchemaError(
            f"{folder}: expected files of one kind, found {named}; name those that are meant with "
            "a glob"
        )
    masters = [path.name for path in several[0] if path.name.endswith(MASTER)]
    if masters:
        raise SchemaError(
            f"{folder}: expected files of one run, found {masters[0]}, which names others of them; "
            "give that file to --in"
        )
    return several[0]


def _listed(path: Path) -> list[Path]:
    """Paths in a list."""
    try:
        lines = os.fsdecode(read_small(path, most_bytes=MOST_LIST_BYTES)).splitlines()
    except FileNotFoundError as error:
        raise RunNotFound(f"{path}: no such list; check the path given to --in") from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    named = [Path(line.strip()) for line in lines if line.strip()]
    if not named:
        raise RunNotFound(f"{path}: expected one path a line, found none")
    return named
