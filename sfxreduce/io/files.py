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

import xxhash

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
    "write_addressed",
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
    """Let Ctrl-C wait for something short that must not be done by halves: a few renames, or what
    a library writes from threads of its own, which would go on after we have cleaned up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: waiting.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if waiting:
        signal.raise_signal(signal.SIGINT)


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


def write_addressed(folder: Path, name: str, *data: bytes) -> None:
    """Write a file whose name says what it holds, and bring file and name to the disk.

    The first writer wins: another that wrote the same bytes finds them there.

    Parameters
    ----------
    folder : Path
        Made if it is not there; the folder around it has to be.
    name : str
    *data : bytes
        One after the other.

    Raises
    ------
    OSError
        If not every byte could be written; see `output_errors`.
    """
    folder.mkdir(exist_ok=True)
    if not (folder / name).exists():
        write_file(folder / name, *data)
        sync_folder(folder)
        sync_folder(folder.parent)


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
    digest : str
        XXH3 of the bytes that were to be written, 128 bits; empty if a library wrote them.
    """

    store: str
    path: str
    digest: str = ""


def publish_file(job: PublishJob) -> FileRecord:
    """Read a staged file back through a fresh handle and take down what it holds.

    One that does not hold what was to be written is removed: the same command makes it anew.

    Raises
    ------
    VerificationError
        If it does not hold what was to be written, or cannot be read.
    """
    file = Path(job.store) / job.path
    # Both in one pass: what was to be written is known by the cheap one, and the manifest, which
    # archives read, has the one that nobody can forge.
    sha256, fast = hashlib.sha256(), xxhash.xxh3_128()
    try:
        for block in _blocks(file):
            sha256.update(block)
            fast.update(block)
        size = file.stat().st_size
    except OSError as error:
        fault = f"cannot be read back ({error.strerror or error})"
    else:
        if not job.digest or fast.hexdigest() == job.digest:
            return FileRecord(path=job.path, size=size, sha256=sha256.hexdigest())
        fault = "what was read back differs from what was written"
    file.unlink(missing_ok=True)
    raise VerificationError(
        f"{file}: {fault}; nothing was published, check the disk and start again"
    )


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for block in _blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            yield block


def disk_bytes(path: Path) -> int:
    """Sum the sizes of a file, or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
