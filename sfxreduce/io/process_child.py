"""The process of its own in which a call is made; see `sfxreduce.io.process.call_in_process`.

The call comes pickled on standard input. One byte is written when it is known, and then, pickled,
what came of it: the result, or the error.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["main"]

PR_SET_PDEATHSIG = 1
"""From ``linux/prctl.h``."""


def main() -> None:
    """Make one call; the argument is the process that waits for the answer."""
    _end_with(int(sys.argv[1]))
    # What the function prints is no answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # What is unpickled was pickled by our own parent, a moment ago.
    function, item = pickle.load(sys.stdin.buffer)  # noqa: S301
    answers.write(b"+")
    answers.flush()
    value, failure = None, None
    try:
        value = function(item)
    except Exception as error:  # noqa: BLE001 - it is raised again where the call was asked for
        failure = error
    answers.write(pickle.dumps((value, failure)))
    answers.flush()
    # Straight out: libraries' exit handlers are nothing to wait for, and after a failed write
    # HDF5's own is what would crash.
    os._exit(0)


def _end_with(parent: int) -> None:
    """End when the parent does, and before it if memory runs out."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
