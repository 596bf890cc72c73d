"""One call in a process of its own: whatever it does to that process, it does to nothing else.

A worker that dies says little about its task: it may have been killed from outside, or by another
task. Here the worker outlives the process and tells how it ended.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any

import psutil
from distributed import get_worker
from distributed.protocol import pickle

from sfxreduce.errors import ClusterError

__all__ = ["START_SECONDS", "Alone", "Failed", "call_alone"]

START_SECONDS = 300
"""In which the process has to be ready: a busy file system may take long to give the modules."""

POLL_SECONDS = 0.2
MEMORY_SHARE = 0.95
"""Of the worker's memory, as Dask itself allows its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A call that its process did not live to answer, in words: "was ended by SIGKILL"."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A call to be made in a process of its own.

    Parameters
    ----------
    seconds : float
        In which it has to end, from when the process is ready.
    """

    function: Callable[[Any], Any]
    seconds: float

    def __call__(self, item: Any) -> Any:
        """Make the call on an item; see `call_alone`."""
        return call_alone(self.function, item, seconds=self.seconds, n_bytes=_memory_limit())


def call_alone(
    function: Callable[[Any], Any], item: Any, *, seconds: float, n_bytes: float
) -> tuple[Any] | Failed:
    """Call a function in a process of its own.

    Parameters
    ----------
    seconds : float
        After which it is ended.
    n_bytes : float
        Of memory, beyond which it is ended.

    Returns
    -------
    tuple of result, or Failed
        A tuple, so that no result is taken for a failure.

    Raises
    ------
    ClusterError
        If the process does not even start.
    Exception
        Whatever the function raised; a lack of memory is a failure.
    """
    # The process has to find this package where this one found it, installed or not.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(  # noqa: S603 - our own module, and no shell
            [sys.executable, "-m", "sfxreduce.cluster.isolated_child", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=environment,
        )
        with process:
            try:
                answer = _answer(process, pickle.dumps((function, item)), seconds, n_bytes)
            finally:
                process.kill()
        if isinstance(answer, Failed):
            return answer
        if not answer:
            said.seek(0)
            raise ClusterError(f"no process of its own could be started for a task: {_last(said)}")
    return _result(answer[1:], process.returncode)


def _answer(
    process: subprocess.Popen[bytes], call: bytes, seconds: float, n_bytes: float
) -> bytes | Failed:
    """Bytes that the process writes: one when it is ready, the rest when it is done."""
    asked, answers = process.stdin, process.stdout
    if asked is None or answers is None:
        raise ClusterError("a process of its own was started without pipes")
    with suppress(BrokenPipeError):
        asked.write(call)
        asked.close()
    answer = bytearray()
    until = time.monotonic() + START_SECONDS
    while (part := _part(answers)) != b"":
        if part and not answer:
            until = time.monotonic() + seconds
        answer += part or b""
        if time.monotonic() > until:
            return Failed(why=f"did not end within {seconds:g} seconds") if answer else b""
        if _memory_of(process.pid) > n_bytes:
            return Failed(why=f"took more than {n_bytes / 1e9:.1f} GB of memory")
    process.wait()
    return bytes(answer)


def _part(answers: IO[bytes]) -> bytes | None:
    """Read what is there; None if nothing is yet, nothing if nothing more will come."""
    if select.select([answers], [], [], POLL_SECONDS)[0]:
        return os.read(answers.fileno(), 1 << 20)
    return None


def _result(answer: bytes, status: int) -> tuple[Any] | Failed:
    if status < 0:
        return Failed(why=f"was ended by {signal.Signals(-status).name}")
    if not answer:
        return Failed(why=f"ended its process with status {status}")
    value, error = pickle.loads(answer)
    if isinstance(error, MemoryError):
        return Failed(why="ran out of memory")
    if error is not None:
        raise error
    return (value,)


def _memory_limit() -> float:
    """Bytes that a task of this worker may take."""
    limit = get_worker().memory_manager.memory_limit
    return float(limit * MEMORY_SHARE if limit else psutil.virtual_memory().total)


def _memory_of(process: int) -> int:
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0


def _last(said: IO[bytes]) -> str:
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"
