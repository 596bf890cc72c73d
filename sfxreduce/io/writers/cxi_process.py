"""CXI and NXmx files written by a process of their own.

When the disk is full, HDF5 can take the whole interpreter down while it closes the file. A process
of its own is all that is lost then, and the caller gets an error.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from sfxreduce.errors import OutputError, OutputExists, SfxReduceError
from sfxreduce.io.process import ProcessFailed, call_in_process
from sfxreduce.io.writers.cxi import write_cxi
from sfxreduce.io.writers.cxi_content import CxiContent
from sfxreduce.io.writers.nxmx import write_nxmx
from sfxreduce.io.writers.nxmx_content import NxmxContent

__all__ = ["write_cxi_in_subprocess", "write_nxmx_in_subprocess"]

Content = TypeVar("Content")


def write_cxi_in_subprocess(path: Path, content: CxiContent) -> int:
    """Write a CXI file in a process of its own; see `write_cxi`.

    Frames do not pass through this process: the other one opens `content.source` for itself.

    Parameters
    ----------
    path : Path
        Must not exist; nothing is left there after an error.
    content : CxiContent
        Its source has to be small when pickled, as every `FrameSource` is.

    Returns
    -------
    int
        Number of frames left out because they cannot be read.

    Raises
    ------
    OutputExists
        If something lies at the path.
    OutputError
        If the file cannot be written, or the process died.
    """
    return _in_subprocess(path, write_cxi, content)


def write_nxmx_in_subprocess(path: Path, content: NxmxContent) -> int:
    """Write an NXmx file in a process of its own; see `write_nxmx`.

    Raises
    ------
    OutputExists
        If something lies at the path.
    OutputError
        If the file cannot be written, or the process died.
    """
    return _in_subprocess(path, write_nxmx, content)


def _in_subprocess(path: Path, write: Callable[[Path, Content], int], content: Content) -> int:
    """Let another process write a file; what it left there after an error is removed."""
    if os.path.lexists(path):
        raise OutputExists(f"{path}: already exists; choose another path")
    try:
        left_out: int = call_in_process(pickle.dumps((partial(write, path), content)))
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, SfxReduceError) or not isinstance(error, Exception):
            raise
        how = str(error) if isinstance(error, ProcessFailed) else f"failed ({error!r})"
        raise OutputError(f"{path}: the process that wrote it {how}; is the disk full?") from error
    return left_out
