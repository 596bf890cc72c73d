"""Single files: written whole, read back, weighed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import OutputError, VerificationError
from sfxreduce.manifest import FileRecord

__all__ = [
    "PARTIAL",
    "PublishJob",
    "disk_bytes",
    "interrupts_wait",
    "output_errors",
    "publish_file",
    "sha256_file",
    "sweep_partial",
    "sync_folder",
    "write_file",
]

PARTIAL = ".partial"
READ_BYTES = 1 << 20


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while writing into one line that says what to do.

    Raises
    ------
    OutputError
        In place of any `OSError`.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            folder = next(p for p in path.resolve().parents if p.exists())
            free = shutil.disk_usage(folder).free
            raise OutputError(
                f"{path}: no space left on the disk ({free} bytes free); nothing was left under "
                "this name, free some space or choose another disk"
            ) from error
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait for something short that must not be done by halves: a few
    renames, or what a library writes from threads of its own, which would go on after we have
    cleaned up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda came, _: waiting.append(came)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if waiting:
        signal.raise_signal(waiting[0])


def write_file(path: Path, *data: bytes, below: Path | None = None) -> None:
    """Write a file whole and bring it to the disk; the same file may be written again.

    A task may run twice, on two workers at once: each writes a file of its own and renames it.

    Parameters
    ----------
    path : Path
    *data : bytes
        One after the other.
    below : Path, optional
        Folders between this one and the file are made; the file's own folder if not given. It has
        to be there: a task that is left over must not bring back an output that was removed.

    Raises
    ------
    OSError
        If not every byte could be written; see `output_errors`.
    """
    if below is not None:
        for parent in reversed(path.relative_to(below).parents[:-1]):
            (below / parent).mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            # A buffered file goes on after a short write until every byte is taken.
            file.writelines(data)
            file.flush()
            # One that fails is not tried again: the system may have dropped what it could not
            # write, and say next time that all is well.
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_partial(folder: Path) -> None:
    """Remove what workers that died left behind in a staged output."""
    for file in folder.rglob(f".*{PARTIAL}"):
        file.unlink()


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishJob:
    """One staged file to be read back.

    Parameters
    ----------
    store : str
        Path of the staged output.
    path : str
        Of the file, relative to it.
    sha256 : str
        Of the bytes that were to be written; empty if they were written by a library.
    """

    store: str
    path: str
    sha256: str = ""


def publish_file(job: PublishJob) -> FileRecord:
    """Read a staged file back through a fresh handle and take down what it holds.

    Raises
    ------
    VerificationError
        If it does not hold what was to be written.
    """
    file = Path(job.store) / job.path
    found = sha256_file(file)
    if job.sha256 and found != job.sha256:
        raise VerificationError(
            f"{file}: what was read back differs from what was written; nothing was published, "
            "check the disk"
        )
    return FileRecord(path=job.path, size=file.stat().st_size, sha256=found)


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def disk_bytes(path: Path) -> int:
    """Sum the sizes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
