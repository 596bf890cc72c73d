"""Run a program of the site: with a time limit, and without believing how much it says."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence

from sfxreduce.errors import ArchiveError

__all__ = ["TRY_LATER", "ask"]

STDOUT_BYTES = 1 << 20
STDERR_BYTES = 1 << 16
READ_BYTES = 1 << 16
TRY_LATER = 75
"""Exit status of a program that could not do it now (EX_TEMPFAIL of sysexits)."""


def ask(command: Sequence[str], *, timeout_s: float) -> bytes:
    """Run a program and give what it wrote to its standard output.

    Parameters
    ----------
    command : sequence of str
        No shell is involved.

    Raises
    ------
    ArchiveError
        If it cannot be started, takes too long, says too much, or fails.
    """
    name = " ".join(command[:2])
    try:
        process = subprocess.Popen(  # noqa: S603 - the site's own script, named by the operator
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            # What it starts in turn has to end with it.
            start_new_session=True,
        )
    except OSError as error:
        raise ArchiveError(f"{name}: cannot be run ({error.strerror or error})") from error
    try:
        told, complaint = _read(process, name, deadline=time.monotonic() + timeout_s)
    except BaseException:
        # Nobody has waited for it yet, so that the number is still its own.
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    if process.returncode:
        advice = "try again later" if process.returncode == TRY_LATER else "see the archive's log"
        raise ArchiveError(
            f"{name}: ended with status {process.returncode} ({_last_line(complaint)}); {advice}"
        )
    return told


def _read(process: subprocess.Popen[bytes], name: str, *, deadline: float) -> tuple[bytes, bytes]:
    """Both outputs until the program ends."""
    told, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for stream, taken in ((process.stdout, told), (process.stderr, complaint)):
            if stream is not None:
                selector.register(stream.fileno(), selectors.EVENT_READ, taken)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                raise ArchiveError(f"{name}: did not answer in time; raise its timeout")
            for key, _ in ready:
                part = os.read(key.fd, READ_BYTES)
                key.data.extend(part)
                if not part:
                    selector.unregister(key.fd)
            # Of complaints the last count, of answers all of them.
            del complaint[:-STDERR_BYTES]
            if len(told) > STDOUT_BYTES:
                raise ArchiveError(f"{name}: expected an answer of at most {STDOUT_BYTES} bytes")
    _wait(process, name, deadline=deadline)
    return bytes(told), bytes(complaint)


def _wait(process: subprocess.Popen[bytes], name: str, *, deadline: float) -> None:
    """Wait for a program that has closed its outputs."""
    try:
        process.wait(max(deadline - time.monotonic(), 0))
    except subprocess.TimeoutExpired as error:
        raise ArchiveError(f"{name}: did not end in time; raise its timeout") from error


def _last_line(complaint: bytes) -> str:
    """What it said last, fit for a terminal."""
    lines = complaint.decode(errors="replace").strip().splitlines()
    text = lines[-1][:300] if lines else "it said nothing"
    return "".join(character if character.isprintable() else "?" for character in text)
