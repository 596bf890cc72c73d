"""The process of its own in which a call is made; see `sfxreduce.cluster.isolated`.

The call comes pickled on standard input. One byte is written when it is known, and then, pickled,
what came of it: the result, or the error.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from distributed.protocol import pickle

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Make one call; the argument is the process that waits for the answer."""
    _end_with(int(sys.argv[1]))
    # What the function prints is no answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # What is unpickled was pickled by our own parent, a moment ago.
    function, item = pickle.loads(sys.stdin.buffer.read())
    answers.write(b"+")
    answers.flush()
    value, failure = None, None
    try:
        value = function(item)
    except Exception as error:  # noqa: BLE001 - it is raised again where the call was asked for
        failure = error
    answers.write(pickle.dumps((value, failure)))
    answers.flush()
    # Straight out: what libraries do at exit is nothing to wait for.
    os._exit(0)


def _end_with(parent: int) -> None:
    """End when the parent does: a worker that is killed must not leave its task behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    # If memory runs out, this process goes first, not its worker.
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


if __name__ == "__main__":
    main()
