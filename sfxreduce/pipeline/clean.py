"""``sfxreduce clean``: what commands that were killed left behind, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfxreduce.errors import RunNotFound, SfxReduceError
from sfxreduce.io.files.durable import (
    PARTIAL,
    UNFINISHED,
    abandoned,
    disk_bytes,
    is_token,
    output_errors,
    why_not_ours,
)
from sfxreduce.io.writers.publish import finish, kind_of, strays_in

__all__ = ["Leftover", "clean_leftovers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """One hidden file or folder that a killed command left behind.

    Parameters
    ----------
    bytes : int
        On the disk.
    kept_because : str
        Why it is left alone; empty if it is not.
    """

    path: Path
    bytes: int
    kept_because: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "removed": not self.kept_because,
            "kept_because": self.kept_because,
        }


def clean_leftovers(path: Path, *, dry_run: bool = False) -> list[Leftover]:
    """Remove what killed commands left of an output, and of everything below a folder.

    What another command is at work on is left alone, and so is what belongs to another user, is a
    link, or is complete and has only to appear.

    Parameters
    ----------
    path : Path
        An output, there or not, or a folder.
    dry_run : bool
        Only list what would be removed.

    Raises
    ------
    RunNotFound
        If neither the path nor its folder is there.
    OutputError
        If something cannot be removed.
    """
    if not path.absolute().parent.is_dir():
        raise RunNotFound(f"{path}: no such file or folder; check the path")
    return [_clean(left, dry_run=dry_run) for left in _leftovers(path.absolute())]


def _leftovers(path: Path) -> Iterator[Path]:
    """Everything with the name of a leftover, beside a path and below it; no link is followed."""
    start = f".{path.name}."
    for beside in sorted(path.parent.iterdir()):
        if _is_leftover(beside.name) and beside.name.startswith(start):
            yield beside
    for root, folders, files in os.walk(path):
        for name in sorted([*folders, *files]):
            if _is_leftover(name):
                yield Path(root, name)
        folders[:] = [name for name in folders if not _is_leftover(name)]


def _is_leftover(name: str) -> bool:
    _, hidden, token = name.rpartition(UNFINISHED)
    return name.startswith(".") and (name.endswith(PARTIAL) or (bool(hidden) and is_token(token)))


def _clean(left: Path, *, dry_run: bool) -> Leftover:
    if left.name.endswith(PARTIAL):
        if left.is_symlink() or not abandoned(left):
            return Leftover(
                path=left, bytes=0, kept_because="is being written, or is no file of this user"
            )
        n_bytes = disk_bytes(left)
        if not dry_run:
            with output_errors(left):
                left.unlink(missing_ok=True)
        return Leftover(path=left, bytes=n_bytes)
    if why := why_not_ours(left):
        return Leftover(path=left, bytes=0, kept_because=why)
    n_bytes, why = disk_bytes(left), ""
    if not kind_of(left) and (strays := strays_in(left)):
        why = f"has no journal of ours, but {min(strays)}; remove it if you know what it is"
    else:
        try:
            finish(left, dry_run=dry_run)
        except SfxReduceError as error:
            why = str(error)
    return Leftover(path=left, bytes=n_bytes, kept_because=why)
