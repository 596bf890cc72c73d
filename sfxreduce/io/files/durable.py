"""Single files: written whole, read back, weighed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from sfxreduce.errors import OutputError, SourceError, VerificationError

__all__ = [
    "PARTIAL",
    "FileRecord",
    "PublishJob",
    "copy_file",
    "disk_bytes",
    "drop_cache",
    "interrupts_wait",
    "output_errors",
    "publish_file",
    "read_blocks",
    "sha256_file",
    "sweep_partial",
    "sync_folder",
    "whole_file",
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
    with whole_file(path) as file:
        # A buffered file goes on after a short write until every byte is taken.
        file.writelines(data)


@contextmanager
def whole_file(path: Path, *, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """Give a hidden file that takes its name once it is on the disk; nothing is left if it fails.

    Parameters
    ----------
    path : Path
        Its folder has to be there.
    check : callable, optional
        Called with the hidden file once it is on the disk; what it raises stops the rename.
    """
    partial = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            # One that fails is not tried again: the system may have dropped what it could not
            # write, and say next time that all is well.
            os.fsync(file.fileno())
        if check is not None:
            check(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> str:
    """Copy a file whole, bring it to the disk, and read it back before it takes its name.

    Parameters
    ----------
    source, target : Path
        What lies under the target's name is replaced.

    Returns
    -------
    str
        The sha256 of what was read back, which is that of what was read from the source.

    Raises
    ------
    SourceError
        If the source cannot be read.
    VerificationError
        If it does not read back as it was written.
    OSError
        If not every byte could be written; see `output_errors`.
    """
    digest = hashlib.sha256()

    def check(partial: Path) -> None:
        drop_cache(partial)
        if sha256_file(partial) != digest.hexdigest():
            raise VerificationError(
                f"{target}: what was read back differs from what was written; nothing was left "
                "under this name, check the disk"
            )

    with whole_file(target, check=check) as file:
        for block in read_blocks(source):
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def read_blocks(path: Path) -> Iterator[bytes]:
    """Bytes of a file, a block at a time.

    Raises
    ------
    SourceError
        If it cannot be read.
    """
    try:
        yield from _blocks(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error


def drop_cache(path: Path) -> None:
    """Ask the system to read a file from the disk again, not from its memory."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of an output.

    Parameters
    ----------
    path : str
        Relative to the output.
    size : int
        In bytes.
    sha256 : str
        Of its bytes, in hexadecimal.
    """

    path: str
    size: int
    sha256: str
