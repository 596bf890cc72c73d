"""Outputs appear under their final name complete, or not at all.

Everything is written beside the final name, under a hidden one, brought to the disk, and renamed.
An interruption at any moment leaves the final name as it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.errors import OutputError, OutputExists, UsageError, VerificationError
from sfxreduce.manifest import FileRecord

__all__ = [
    "PublishJob",
    "check_outputs",
    "disk_bytes",
    "output_errors",
    "publish_file",
    "sha256_file",
    "staged",
    "sweep_partial",
    "write_file",
]

PARTIAL = ".partial"
READ_BYTES = 1 << 20


def check_outputs(outputs: Sequence[Path], *, inputs: Sequence[Path], overwrite: bool) -> None:
    """Refuse outputs that would touch an input, each other, or what is already there.

    Parameters
    ----------
    outputs, inputs : sequence of Path
    overwrite : bool
        Whether existing outputs may be replaced.

    Raises
    ------
    UsageError
        If an output is, contains or lies in an input or another output.
    OutputExists
        If an output exists and may not be replaced.
    OutputError
        If an output's folder does not exist.
    """
    taken = {path.resolve(): "input" for path in inputs}
    for output in outputs:
        final = output.resolve()
        for other, role in taken.items():
            if final == other or final in other.parents or other in final.parents:
                raise UsageError(
                    f"{output}: overlaps the {role} {other}; choose another output path"
                )
        taken[final] = "output"
        if not final.parent.is_dir():
            raise OutputError(f"{output}: there is no folder {final.parent}; make it first")
        if os.path.lexists(output) and not overwrite:
            raise OutputExists(f"{output}: already exists; choose another path or pass --overwrite")


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Give a hidden path beside the final one, and move it there when the block ends well.

    The final name must be free or, as `check_outputs` allowed, to be replaced. If the block raises,
    what was staged is removed and the final name stays as it was.

    Parameters
    ----------
    final : Path
        A file or a folder.

    Raises
    ------
    OutputError
        If the disk is full or the folder cannot be written.
    """
    # Workers of a pool elsewhere have a working directory of their own.
    folder = final.parent.resolve()
    hidden = folder / f".{final.name}.{uuid.uuid4().hex[:12]}{PARTIAL}"
    try:
        with output_errors(final):
            yield hidden
            _sync_tree(hidden)
            _swap_in(hidden, final)
    except OutputError as error:
        # People know the output by the name they gave it.
        raise type(error)(str(error).replace(str(hidden), str(final))) from error
    finally:
        _remove(hidden)


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


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole and bring it to the disk; the same file may be written again.

    A task may run twice, on two workers at once: each writes a file of its own and renames it.

    Raises
    ------
    OSError
        If not every byte could be written; see `output_errors`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


def _sync_tree(path: Path) -> None:
    """Bring folders and files to the disk; children first, so that no name outlives its bytes."""
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _swap_in(hidden: Path, final: Path) -> None:
    """Rename to the final name; what was there before is removed only after that."""
    old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:12]}.old")
    replaced = os.path.lexists(final)
    if replaced:
        final.rename(old)
    hidden.rename(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    if replaced:
        _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or folder of our own making, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
