"""Which file a path led to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import RunNotFound, SourceError

__all__ = ["FileStamp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """Which file a path led to, so that one that was replaced is looked at anew.

    Parameters
    ----------
    path : str
        Real path, without symbolic links.
    """

    path: str
    n_bytes: int
    modified_ns: int
    inode: int

    @classmethod
    def of(cls, path: str | Path) -> FileStamp:
        """Look at a path.

        Raises
        ------
        RunNotFound
            If nothing lies there.
        SourceError
            If it is not a file, or may not be looked at.
        """
        real = Path(os.path.realpath(path))
        try:
            stat = real.stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunNotFound(f"{path}: expected a file, found none; check the path") from error
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        # Opening a pipe or a device would wait for ever.
        if not real.is_file():
            raise SourceError(f"{path}: expected a file, found something else; check the path")
        return cls(
            path=str(real),
            n_bytes=stat.st_size,
            modified_ns=stat.st_mtime_ns,
            inode=stat.st_ino,
        )
