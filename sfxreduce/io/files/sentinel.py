"""A few files that stand for many: whoever reads them as we do sees what we see.

They are spread over the bytes of a run, so that of its shards some are among them from end to end.
Of each the size, the time of change and both ends are read: to be listed is not to be readable.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path

from sfxreduce.io.files.safe_read import looked_at, open_file

__all__ = ["sentinel", "sentinels"]

MOST_FILES = 32
"""Files that are read: on a network file system each costs a few milliseconds."""

END_BYTES = 4096
"""Read at both ends of a file."""


def sentinels(paths: Iterable[Path], *, most: int = MOST_FILES) -> dict[str, str]:
    """Choose files that stand for all files at, or below, some paths, and look at them.

    Returns
    -------
    dict
        What `sentinel` says of each, by its path.

    Raises
    ------
    SourceError
        If one of the paths is gone or may not be looked at.
    """
    files = [(name, facts.st_size) for name, facts in looked_at(paths)]
    if not files:
        return {}
    # The last one closes the list: what is still being copied is missing at the end.
    ends = list(accumulate(size + 1 for _, size in files))
    wanted = (ends[-1] * (2 * n + 1) // (2 * most) for n in range(most))
    chosen = {bisect_right(ends, place) for place in wanted} | {0, len(files) - 1}
    return {files[n][0]: sentinel(files[n][0]) for n in sorted(chosen)}


def sentinel(path: str) -> str:
    """Say what a process sees of a file, in words that are the same for whoever sees the same."""
    try:
        with open_file(path) as file:
            facts = os.fstat(file.fileno())
            ends = file.read(END_BYTES)
            file.seek(max(0, facts.st_size - END_BYTES))
            ends += file.read(END_BYTES)
    except OSError as error:
        return (error.strerror or str(error)).lower()
    held = hashlib.sha256(ends).hexdigest()[:12]
    return f"{facts.st_size} bytes of {facts.st_mtime_ns} ns that begin and end as {held}"
