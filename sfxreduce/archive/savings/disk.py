"""Files as they lie on a disk: each counted once, whatever it is called, and no link followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import SourceError

__all__ = ["DiskFile", "Weighed", "walk_files"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """A regular file.

    Parameters
    ----------
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


def walk_files(root: Path, *, unseen: list[str] | None = None) -> Iterator[DiskFile]:
    """Regular files of a path, in order: itself, or all below it; none if nothing lies there.

    What vanishes meanwhile is passed over.

    Parameters
    ----------
    root : Path
        May itself be a link, which whoever named it has chosen; links below it are not followed.
    unseen : list of str, optional
        Takes down what cannot be looked at, and the walk goes on.

    Raises
    ------
    SourceError
        Without `unseen`, if something cannot be looked at: bytes that are not seen cannot be
        summed.
    """
    waiting = [root]
    while waiting:
        path = waiting.pop()
        try:
            files, folders = _listed(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            told = (
                f"{error.filename or path}: cannot be looked at ({error.strerror}); ask for the "
                "right to read it"
            )
            if unseen is None:
                raise SourceError(told) from error
            unseen.append(told)
            continue
        yield from files
        waiting += folders


def _listed(path: Path) -> tuple[list[DiskFile], list[Path]]:
    """Files and folders right below a path, or the file that it is."""
    facts = path.stat()
    if not stat.S_ISDIR(facts.st_mode):
        return ([_disk_file(path, facts)] if stat.S_ISREG(facts.st_mode) else []), []
    files, folders = [], []
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    found = entry.stat(follow_symlinks=False)
                    files.append(_disk_file(Path(entry.path), found))
    return files, folders


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
