"""Files as they lie on a disk: each counted once, whatever it is called, and no link followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import SourceError

__all__ = ["DiskFile", "Weighed", "walk_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """A regular file.

    Parameters
    ----------
    path : Path
    size : int
        In bytes.
    device, inode : int
        Two names with the same pair are one file.
    """

    path: Path
    size: int
    device: int
    inode: int

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from every other file."""
        return self.device, self.inode


def walk_files(root: Path) -> Iterator[DiskFile]:
    """Regular files of a path, in order: itself, or all below it; none if nothing lies there.

    Parameters
    ----------
    root : Path
        May itself be a link, which whoever named it has chosen; links below it are not followed.

    Raises
    ------
    SourceError
        If a folder cannot be listed: bytes that cannot be seen cannot be summed.
    """
    try:
        facts = root.stat()
        if stat.S_ISREG(facts.st_mode):
            yield _disk_file(root, facts)
        elif stat.S_ISDIR(facts.st_mode):
            yield from _below(root)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise SourceError(
            f"{error.filename or root}: cannot be looked at ({error.strerror}); ask for the right "
            "to read it"
        ) from error


def _below(root: Path) -> Iterator[DiskFile]:
    waiting = [str(root)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield _disk_file(Path(entry.path), entry.stat(follow_symlinks=False))


def _disk_file(path: Path, facts: os.stat_result) -> DiskFile:
    return DiskFile(path=path, size=facts.st_size, device=facts.st_dev, inode=facts.st_ino)


class Weighed:
    """Files that were counted, so that none is counted twice."""

    def __init__(self) -> None:
        self._keys: set[tuple[int, int]] = set()
        self._sizes: set[tuple[int, int]] = set()

    def new(self, files: Iterable[DiskFile]) -> list[DiskFile]:
        """Take the files that were not counted yet, and count them."""
        fresh = []
        for file in files:
            if file.key not in self._keys:
                self._keys.add(file.key)
                self._sizes.add((file.inode, file.size))
                fresh.append(file)
        return fresh

    def holds(self, *, inode: int, size: int) -> bool:
        """Whether a file of this inode and size was counted, on any device."""
        return (inode, size) in self._sizes
