"""CXI files written by a process of their own.

When the disk is full, HDF5 can take the whole interpreter down while it closes the file. A process
of its own is all that is lost then, and the caller gets an error.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

from sfxreduce import errors
from sfxreduce.errors import OutputError, OutputExists, SfxReduceError
from sfxreduce.io.writers.cxi import write_cxi
from sfxreduce.io.writers.cxi_content import CxiContent

__all__ = ["main", "write_cxi_in_subprocess"]


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
    if os.path.lexists(path):
        raise OutputExists(f"{path}: already exists; choose another path")
    complete = False
    try:
        left_out = _answer(path, _run(path, content))
        complete = True
    finally:
        if not complete:
            path.unlink(missing_ok=True)
    return left_out


def _run(path: Path, content: CxiContent) -> subprocess.CompletedProcess[bytes]:
    """Run the writer and wait for it."""
    # The process has to find this package where this one found it, installed or not.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(  # noqa: S603 - our own module, and no shell
        # Not from the working directory, which may be the folder of whoever made the run.
        [sys.executable, "-P", "-m", __name__, str(path)],
        input=pickle.dumps(content),
        capture_output=True,
        env=environment,
        check=False,
    )


def _answer(path: Path, done: subprocess.CompletedProcess[bytes]) -> int:
    """Take the writer's answer, or raise what it raised."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise OutputError(
            f"{path}: the process that wrote it was ended by {name}; is the disk full?"
        )
    lines = done.stdout.decode(errors="replace").splitlines()
    if not lines:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise OutputError(
            f"{path}: the process that wrote it ended with status {done.returncode} and said "
            f"'{said[-1]}'"
        )
    answer = json.loads(lines[-1])
    if "error" in answer:
        raise getattr(errors, answer["error"], OutputError)(answer["message"])
    return int(answer["left_out"])


def main() -> None:
    """Write one file: the path is the argument, the pickled content comes on standard input."""
    # What is unpickled was pickled by our own parent, a moment ago.
    content = pickle.load(sys.stdin.buffer)  # noqa: S301
    try:
        answer: dict[str, object] = {"left_out": write_cxi(Path(sys.argv[1]), content)}
    except SfxReduceError as error:
        answer = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(f"{json.dumps(answer)}\n")
    sys.stdout.flush()
    # Straight out: after a failed write, HDF5's own exit handler is what would crash.
    os._exit(1 if "error" in answer else 0)


if __name__ == "__main__":
    main()
