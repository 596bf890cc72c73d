"""Files and folders of our own: written whole, hidden until they are done, swept if left behind.

A hidden folder has a name that nobody can guess and is open to its owner alone. One that lies there
is believed only if it is a folder, no link, and belongs to this user.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import stat
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sfxreduce.errors import OutputError, SfxReduceWarning, SourceError, VerificationError

__all__ = [
    "PARTIAL",
    "TOKEN_BYTES",
    "UNFINISHED",
    "FileRecord",
    "abandoned",
    "blocks_of",
    "copy_file",
    "disk_bytes",
    "drop_cache",
    "hidden_folder",
    "hidden_folders",
    "interrupts_wait",
    "is_token",
    "output_errors",
    "read_blocks",
    "sha256_file",
    "sweep_partial",
    "sync_folder",
    "warn",
    "whole_file",
    "why_not_ours",
    "write_addressed",
    "write_file",
]

PARTIAL = ".partial"

UNFINISHED = ".unfinished-"
TOKEN_BYTES = 8
HEX_DIGITS = frozenset("0123456789abcdef")

MOST_NAME_BYTES = 200
"""Longest name that becomes part of a hidden one: file systems allow 255 bytes."""

READ_BYTES = 1 << 20

STALE_S = 24 * 3600.0
"""Age of a half-written file that nobody is working on any more, where there are no locks."""


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
            free, facts = shutil.disk_usage(folder).free, os.statvfs(folder)
            what, do = f"no space left on the disk ({free} bytes free)", "free some space"
            # Some file systems make inodes as they go, and count none.
            if facts.f_files and not facts.f_favail:
                what = f"no file can be added to the disk (0 of {facts.f_files} inodes free)"
                do = "remove some files"
            raise OutputError(
                f"{path}: {what}; nothing was left under this name, {do} or choose another disk"
            ) from error
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C and its like wait for something short that must not be done by halves: a few
    renames, or what a library writes from threads of its own, which would go on after we have
    cleaned up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda came, _: waiting.append(came)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if waiting:
        handler = before[numbers.index(waiting[0])]
        if callable(handler):  # a signal raised anew may be delivered where nobody hears of it
            handler(waiting[0], None)
        else:
            signal.raise_signal(waiting[0])


def hidden_folder(final: Path, token: str = "") -> Path:
    """Make a folder that only this user can enter, beside an output's final name.

    Parameters
    ----------
    token : str
        Sixteen hexadecimal digits at the end of its name; random if not given.

    Raises
    ------
    OutputError
        If it cannot be made: whatever lies there already is left alone.
    """
    folder = _beside(final) / f"{_hidden_prefix(final)}{token or secrets.token_hex(TOKEN_BYTES)}"
    with output_errors(final):
        folder.mkdir(mode=0o700)
        sync_folder(folder.parent)
    return folder


def hidden_folders(final: Path) -> list[Path]:
    """Hidden folders of an output that are ours, in no order.

    Warns
    -----
    SfxReduceWarning
        Of each other one with such a name; it is never touched.
    """
    ours = []
    prefix = _hidden_prefix(final)
    try:
        beside = sorted(_beside(final).iterdir())
    except OSError:
        return []
    for path in beside:
        token = path.name.removeprefix(prefix)
        if path.name == f"{prefix}{token}" and is_token(token):
            if why := why_not_ours(path):
                warn(f"{path}: {why}; it is left alone, remove it if you know whose it is")
            else:
                ours.append(path)
    return ours


def is_token(text: str) -> bool:
    """Whether a text is what a hidden folder's name ends with."""
    return len(text) == 2 * TOKEN_BYTES and not set(text) - HEX_DIGITS


def why_not_ours(folder: Path) -> str:
    """Say why a hidden folder is not to be believed; empty if it is.

    It is opened without following links, and what was opened is looked at.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return "is a link or a file, where only a folder of ours would be"
        return f"cannot be opened ({error.strerror or error})"
    try:
        facts = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if facts.st_uid != os.geteuid():
        return f"belongs to another user (number {facts.st_uid})"
    if facts.st_mode & 0o077:
        return "is open to other users, which no folder of ours is"
    return ""


def warn(text: str) -> None:
    """Say something that stops nothing."""
    warnings.warn(text, SfxReduceWarning, stacklevel=2)


def _beside(final: Path) -> Path:
    # Workers elsewhere have working directories of their own.
    return final.parent.resolve()


def _hidden_prefix(final: Path) -> str:
    name = final.name
    if len(os.fsencode(name)) > MOST_NAME_BYTES:
        name = f"{name[:40]}.{hashlib.sha256(os.fsencode(final.name)).hexdigest()[:16]}"
    return f".{name}{UNFINISHED}"


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
            with suppress(OSError):  # where there are no locks, its age tells that it was left
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            # One that fails is not tried again: the system may have dropped what it could not
            # write, and say next time that all is well.
            os.fsync(file.fileno())
            if check is not None:
                check(partial)
            # While it is open it is locked, and no other program sweeps it.
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
        yield from blocks_of(path)
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


def sweep_partial(folder: Path, *, below: bool = True) -> None:
    """Remove files of ours that a program was killed over; what is being written is left alone.

    Parameters
    ----------
    below : bool
        Whether folders below are swept as well.
    """
    for file in folder.rglob(f".*{PARTIAL}") if below else folder.glob(f".*{PARTIAL}"):
        if abandoned(file):
            file.unlink(missing_ok=True)


def abandoned(file: Path) -> bool:
    """Whether a half-written file is ours and no program is at work on it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        facts = os.fstat(descriptor)
        if facts.st_uid != os.geteuid() or not stat.S_ISREG(facts.st_mode):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return time.time() - facts.st_mtime > STALE_S
    finally:
        os.close(descriptor)
    return True


def sha256_file(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    for block in blocks_of(path):
        digest.update(block)
    return digest.hexdigest()


def blocks_of(path: Path) -> Iterator[bytes]:
    """Bytes of a file, a block at a time; errors are the system's own."""
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
