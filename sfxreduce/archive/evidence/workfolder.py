"""Work folders in the evidence of a run, for what is on its way to the archive or back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfxreduce.io.files.durable import output_errors

__all__ = ["work_folder"]


@contextmanager
def work_folder(evidence: Path, kind: str) -> Iterator[Path]:
    """Empty folder that is removed afterwards, with those of its kind that were left behind.

    The evidence has to be open, so that nobody else is at work in it.

    Parameters
    ----------
    kind : str
        Part of its hidden name.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    prefix = f".{kind}-"
    with output_errors(evidence):
        for left in evidence.glob(f"{prefix}*"):
            # What a program of ours that was killed had no time to remove.
            if left.lstat().st_uid == os.geteuid():
                shutil.rmtree(left)
        folder = tempfile.TemporaryDirectory(prefix=prefix, dir=evidence)
    with folder as name:
        yield Path(name)
