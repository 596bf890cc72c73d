"""Processes of our own: they find this package, nothing in the working directory, and always end.

Whatever such a process does, it does to itself alone: it may run out of memory, be taken down by a
C library, or never answer. How it ended is said in words: "was ended by SIGKILL".
"""

from __future__ import annotations

import math
import os
import pickle
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import psutil

__all__ = [
    "START_SECONDS",
    "NotStarted",
    "ProcessFailed",
    "call_in_process",
    "end_process",
    "how_it_ended",
    "last_line",
    "read_outputs",
    "start_module",
    "start_process",
]

CALL_CHILD = "sfxreduce.io.process_child"

START_SECONDS = 300
"""In which a call has to be ready: a busy file system may take long to give the modules."""

POLL_SECONDS = 0.2
"""Between two checks of a silent process: short beside the start of an interpreter, about 1 s."""

EXIT_SECONDS = 0.005
"""The same once its outputs are closed: it has exited or is about to."""

READ_BYTES = 1 << 16
"""A pipe of Linux holds as much."""

STDERR_BYTES = 1 << 16
"""Of complaints only the last line is shown."""

LINE_LENGTH = 300
"""Characters of that line: four rows of a terminal."""


class ProcessFailed(Exception):
    """A call that its process did not live to answer, in words: "was ended by SIGKILL"."""


class NotStarted(ProcessFailed):
    """A process that ended before it was ready for its call; the last line it said."""


def start_process(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own; `read_outputs` or `end_process` has to follow.

    Raises
    ------
    OSError
        If it cannot be started.
    """
    # A session: what it starts in turn ends with it, and Ctrl-C reaches it through us alone.
    return subprocess.Popen(  # noqa: S603 - our own module, or a script the operator named
        command, stdout=subprocess.PIPE, start_new_session=True, **options
    )


def start_module(
    module: str,
    *arguments: str,
    stdin: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **environment: str,
) -> subprocess.Popen[bytes]:
    """Start a module of this package, with more `environment` than this process has."""
    # It has to find this package where this process found it, installed or not, but nothing in the
    # working directory (-P), which may be the folder of whoever made the run.
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return start_process(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stderr=stderr,
        env={**os.environ, **path, **environment},
    )


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started, whatever they do; may be called again."""
    if process.returncode is None:
        # Nobody has waited for it yet, so that the number is still its own.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def read_outputs(
    process: subprocess.Popen[bytes], check: Callable[[bytearray], None]
) -> tuple[bytes, bytes]:
    """Read what a process says until it ends, and end what it started.

    Parameters
    ----------
    check : callable
        Called with the standard output so far, several times a second; what it raises ends the
        process.

    Returns
    -------
    tuple of bytes
        Standard output, and the end of standard error, if that is a pipe.
    """
    stdout, stderr = bytearray(), bytearray()
    try:
        with selectors.DefaultSelector() as selector:
            for pipe, taken in ((process.stdout, stdout), (process.stderr, stderr)):
                if pipe is not None:
                    selector.register(pipe, selectors.EVENT_READ, taken)
            ready, ended = True, False
            # Not until both are closed: what it started may hold them open.
            while ready or not ended:
                # Asked for before it is read: what a process says before it ends is there then.
                ended = _has_ended(process)
                ready = _read_some(selector)
                del stderr[:-STDERR_BYTES]
                check(stdout)
    finally:
        end_process(process)
    return bytes(stdout), bytes(stderr)


def _read_some(selector: selectors.BaseSelector) -> bool:
    """Read what is there, or wait for a moment; return whether anything was."""
    ready = selector.select(POLL_SECONDS if selector.get_map() else EXIT_SECONDS)
    for key, _ in ready:
        block = os.read(key.fd, READ_BYTES)
        key.data.extend(block)
        if not block:
            selector.unregister(key.fileobj)
    return bool(ready)


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    # Not waited for: its number stays its own until `end_process` has ended what it started.
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def how_it_ended(status: int) -> str:
    """Say how a process ended.

    Parameters
    ----------
    status : int
        Exit status, or the number of a signal, negative.

    Examples
    --------
    >>> how_it_ended(3), how_it_ended(-9)
    ('ended with status 3', 'was ended by SIGKILL')
    """
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was ended by signal {-status}"


def last_line(stderr: bytes) -> str:
    r"""Give the last line of what a process said, fit for a terminal.

    Examples
    --------
    >>> last_line(b"one\ntwo \033[31m\n"), last_line(b"")
    ('two ?[31m', 'it said nothing')
    """
    lines = stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
    return "".join(char if char.isprintable() else "?" for char in lines[-1][:LINE_LENGTH])


def call_in_process(
    call: bytes, *, seconds: float = math.inf, memory_bytes: float = math.inf
) -> Any:
    """Make a call in a process of its own.

    Parameters
    ----------
    call : bytes
        A function and its argument, pickled.
    seconds : float
        In which it has to end, from when the process is ready.
    memory_bytes : float
        Resident memory beyond which it is ended.

    Returns
    -------
    object
        What the function returned.

    Raises
    ------
    ProcessFailed
        If the process ended, or was ended, before the function did, or ran out of memory.
    Exception
        Whatever the function raised.
    """
    with os.fdopen(os.memfd_create("call"), "w+b") as data:
        data.write(call)
        data.seek(0)
        # The child ends with us: a worker that is killed must not leave its task behind.
        process = start_module(CALL_CHILD, str(os.getpid()), stdin=data.fileno())
    deadline = time.monotonic() + START_SECONDS
    is_ready = False

    def check(answer: bytearray) -> None:
        nonlocal deadline, is_ready
        if answer and not is_ready:
            deadline, is_ready = time.monotonic() + seconds, True
        if time.monotonic() > deadline:
            if not is_ready:
                raise NotStarted(f"was not ready within {START_SECONDS} seconds")
            raise ProcessFailed(f"did not end within {seconds:g} seconds")
        if _memory_of(process.pid) > memory_bytes:
            raise ProcessFailed(f"took more than {memory_bytes / 1e9:.1f} GB of memory")

    answer, stderr = read_outputs(process, check)
    return _result(answer, stderr, process.returncode)


def _memory_of(process: int) -> int:
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0


def _result(answer: bytes, stderr: bytes, status: int) -> Any:
    """Take an answer: a byte when the process was ready, then what came of the call, pickled."""
    if not answer:
        raise NotStarted(f"{how_it_ended(status)} ({last_line(stderr)})")
    if status or len(answer) == 1:
        raise ProcessFailed(how_it_ended(status))
    # What is unpickled was pickled by our own child, of what our own function returned.
    value, error = pickle.loads(answer[1:])  # noqa: S301
    if isinstance(error, MemoryError):
        raise ProcessFailed("ran out of memory")
    if error is not None:
        raise error
    return value
