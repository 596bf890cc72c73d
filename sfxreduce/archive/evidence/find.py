"""Evidence folders below a folder, found without entering runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sfxreduce.archive.evidence.folder import JOURNAL, SUFFIX
from sfxreduce.errors import RunNotFound

__all__ = ["DEPTH", "evidence_below", "find_evidence"]

DEPTH = 3
"""Levels of folders that are looked into."""


def find_evidence(
    root: Path, *, depth: int = DEPTH, unseen: list[str] | None = None
) -> Iterator[tuple[Path, Path]]:
    """Runs and their evidence folders below a folder, sorted; folders of runs are not entered.

    Evidence that lies under another name than its run's is left out: which run it is about is not
    known from its name.

    Parameters
    ----------
    depth : int
        Levels of folders to look into.
    unseen : list of str, optional
        Takes down folders that cannot be listed, and the search goes on.

    Raises
    ------
    RunNotFound
        If there is no such folder.
    OSError
        Without `unseen`, if a folder cannot be listed.
    """
    for path in evidence_below(root, depth=depth, unseen=unseen):
        if path.name.endswith(SUFFIX):
            yield path.with_name(path.name.removesuffix(SUFFIX)), path


def evidence_below(
    root: Path, *, depth: int = DEPTH, unseen: list[str] | None = None
) -> Iterator[Path]:
    """Evidence folders of any name below a folder, sorted; see `find_evidence`."""
    if not root.is_dir():
        raise RunNotFound(f"{root}: no such folder; check the path given to --root")
    try:
        with os.scandir(root) as entries:
            # A folder may hold a million images, and none of them is to be asked after.
            folders = sorted(Path(e.path) for e in entries if e.is_dir(follow_symlinks=False))
    except OSError as error:
        if unseen is None:
            raise
        unseen.append(f"{root}: cannot be listed ({error.strerror})")
        return
    runs = {
        path.with_name(path.name.removesuffix(SUFFIX)) for path in folders if _is_evidence(path)
    }
    for path in folders:
        if _is_evidence(path):
            yield path
        elif depth > 1 and path not in runs and not (path / "zarr.json").exists():
            yield from evidence_below(path, depth=depth - 1, unseen=unseen)


def _is_evidence(path: Path) -> bool:
    if (path / JOURNAL).exists():
        return True
    return path.name.endswith(SUFFIX) and (path / "holds").is_dir()
