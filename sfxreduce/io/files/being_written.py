"""Signs that somebody is still writing files; none of them is touched, and no lock is taken."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sfxreduce.io.files.safe_read import looked_at, open_file

__all__ = ["being_written", "hdf5_writer"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
WITH_FLAGS = (2, 3)
"""Versions of an HDF5 superblock that say who has the file open."""

WRITING, SWMR_WRITING = 1, 4

LOCKS = Path("/proc/locks")


def being_written(
    paths: Iterable[Path], *, settle_seconds: float, changed_at: float = 0.0
) -> list[str]:
    """Look at files, and at all below folders.

    Parameters
    ----------
    settle_seconds : float
        Files that changed less than this long ago count as being written; 0 for none.
    changed_at : float
        When something changed that is no file, in seconds since 1970.

    Returns
    -------
    list of str
        "CODE: words" of each kind of sign, once.
    """
    paths = list(paths)
    found = [sign for path in paths if path.is_file() for sign in _signs(path)]
    if settle_seconds > 0:
        newest = max((facts.st_mtime for _, facts in looked_at(paths)), default=0.0)
        ago = time.time() - max(newest, changed_at)
        if ago < settle_seconds:
            found.append(f"JUST_CHANGED: changed {max(ago, 0):.0f} s ago")
    return list(dict.fromkeys(found))


def _signs(path: Path) -> Iterator[str]:
    flag = hdf5_writer(path)
    if flag:
        yield flag
    elif _is_locked(path):
        yield "WRITER_LOCK: open for writing"


def hdf5_writer(path: Path) -> str:
    """Say who has an HDF5 file open, as far as its first bytes tell it; empty if nobody."""
    with suppress(OSError), open_file(path) as file:
        head = file.read(12)
        if len(head) == 12 and head.startswith(SIGNATURE) and head[8] in WITH_FLAGS:
            if head[11] & SWMR_WRITING:
                return "SWMR: open for writing by a program that lets others read (SWMR)"
            if head[11] & WRITING:
                return "WRITER_LOCK: open for writing"
    return ""


def _is_locked(path: Path) -> bool:
    """Whether a process of this machine holds the file for itself, as HDF5 does to write."""
    with suppress(OSError, ValueError):
        facts = path.stat()
        for line in LOCKS.read_text().splitlines():
            # 19: FLOCK  ADVISORY  WRITE 28753 fe:00:2162955 0 EOF
            parts = line.split()
            if "WRITE" not in parts:
                continue
            # No file is named where the system has none at hand: <none>:0.
            place = next((part for part in parts if part.count(":") == 2), "0:0:0")
            major, minor, inode = place.split(":")
            device = os.makedev(int(major, 16), int(minor, 16))
            if (device, int(inode)) == (facts.st_dev, facts.st_ino):
                return True
    return False
