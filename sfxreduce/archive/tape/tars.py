"""Packages as tars: weighed, written, and read one file at a time."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sfxreduce.archive.tape.packages import Package, tar_header
from sfxreduce.errors import SourceError, VerificationError
from sfxreduce.io.files.durable import (
    READ_BYTES,
    FileRecord,
    drop_cache,
    output_errors,
    sha256_file,
    sync_folder,
    whole_file,
)

__all__ = ["read_member", "sum_package", "write_package"]


def write_package(package: Package, *, source: Path, folder: Path) -> FileRecord:
    """Write a package as a tar; it appears under its name whole, on the disk, and read back.

    Every file is compared with its record on the way. The same package is the same bytes whoever
    writes it, and whenever.

    Parameters
    ----------
    source : Path
        Folder of the files; only read.
    folder : Path
        Where to write; it has to be there.

    Returns
    -------
    FileRecord
        Of the tar.

    Raises
    ------
    SourceError
        If a file cannot be read, or is not as its record says.
    VerificationError
        If the tar does not read back as it was written.
    OutputError
        If it cannot be written.
    """
    target = folder / package.name
    digest = hashlib.sha256()

    def check(partial: Path) -> None:
        drop_cache(partial)
        if sha256_file(partial) != digest.hexdigest() or partial.stat().st_size != package.size:
            raise VerificationError(f"{target}: does not read back as it was written; see the disk")

    with output_errors(target):
        with whole_file(target, check=check) as file:
            _write(package, source, _Tee(digest, file))
        sync_folder(folder)
    return FileRecord(path=package.name, size=package.size, sha256=digest.hexdigest())


def sum_package(package: Package, *, source: Path) -> FileRecord:
    """Record of the tar that `write_package` would write; nothing is written.

    Raises
    ------
    SourceError
        If a file cannot be read, or is not as its record says.
    """
    digest = hashlib.sha256()
    _write(package, source, _Tee(digest))
    return FileRecord(path=package.name, size=package.size, sha256=digest.hexdigest())


def read_member(tar: Path, package: Package, path: str, *, into: Path) -> None:
    """Take one file out of a package; nothing else of it is read.

    Parameters
    ----------
    path : str
        Of the file, as the package has it.
    into : Path
        Of the new file.

    Raises
    ------
    SourceError
        If it cannot be read, or is not as its record says.
    OutputError
        If it cannot be written.
    """
    record = next(file for file in package.files if file.path == path)
    digest = hashlib.sha256()
    with output_errors(into), whole_file(into) as file:
        for block in _range(tar, package.offsets[path], record.size):
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != record.sha256:
            raise SourceError(f"{tar}: the file '{path}' in it is not what was archived")


class _Tee:
    """Hashes what is written, and writes it to a file if there is one."""

    def __init__(self, digest: Any, file: BinaryIO | None = None) -> None:
        self._digest = digest
        self._file = file
        self._place = 0

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        if self._file is not None:
            self._file.write(data)
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place


class _Checked:
    """Reads a file and hashes what was read; what tar asks for has to be there."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        try:
            data = self._file.read(size)
        except OSError as error:
            raise SourceError(f"{self._path}: cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise _changed(self._path)
        self._digest.update(data)
        return data

    def is_whole(self, sha256: str) -> bool:
        """Whether the file ends here and was the one with this checksum."""
        return self._digest.hexdigest() == sha256 and not self._file.read(1)


def _write(package: Package, source: Path, tee: Any) -> None:
    with tarfile.open(fileobj=tee, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for record in package.files:
            _add(tar, record, source / record.path)


def _add(tar: tarfile.TarFile, record: FileRecord, path: Path) -> None:
    """Add a file, and see that it is the one that was recorded."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    with file:
        checked: Any = _Checked(file, path)
        tar.addfile(tar_header(record), checked)
        if not checked.is_whole(record.sha256):
            raise _changed(path)


def _changed(path: Path) -> SourceError:
    return SourceError(f"{path}: is not what was planned; plan the archive again")


def _range(path: Path, offset: int, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while size and (block := file.read(min(size, READ_BYTES))):
                size -= len(block)
                yield block
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
