"""Files packed to a size that tape likes: uncompressed tar, with an index of where each one lies.

Tape reads in long runs: thousands of shards of a run are slow to write, and slow to bring back. A
package is planned before a byte is read, its size and the place of each file in it included, so
that one event can be restored by reading the shard that holds it, and nothing else of the tar.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from sfxreduce.archive.paths import check_path
from sfxreduce.errors import SchemaError, SourceError, VerificationError
from sfxreduce.io.files import (
    READ_BYTES,
    drop_cache,
    output_errors,
    sha256_file,
    sync_folder,
    whole_file,
)
from sfxreduce.manifest import FileRecord

__all__ = [
    "TARGET_BYTES",
    "Package",
    "pack",
    "packages_from_json",
    "packages_to_json",
    "read_member",
    "write_package",
]

TARGET_BYTES = 50 * 10**9
"""A few minutes of a tape drive; sites ask for 10 to 100 GB."""

BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, kw_only=True)
class Package:
    """Files that are archived together.

    Parameters
    ----------
    name : str
        In the archive.
    files : tuple of FileRecord
        At least one, in the order in which they are packed.
    """

    name: str
    files: tuple[FileRecord, ...]

    def __post_init__(self) -> None:
        check_path(self.name, where="package")
        paths = [check_path(file.path, where=self.name) for file in self.files]
        if not paths or len(set(paths)) != len(paths):
            raise SchemaError(f"{self.name}: expected files, each once, found {len(paths)} paths")

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Where the bytes of each file begin in the tar."""
        places, _ = self._layout()
        return places

    @cached_property
    def size(self) -> int:
        """Bytes of the tar."""
        _, end = self._layout()
        # Two empty blocks, and zeros up to a whole record.
        return -(-(end + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE

    def _layout(self) -> tuple[Mapping[str, int], int]:
        places, end = {}, 0
        for file in self.files:
            places[file.path] = end + len(_header(file).tobuf(tarfile.PAX_FORMAT))
            end = places[file.path] + _padded(file.size)
        return places, end


def pack(
    files: Sequence[FileRecord], *, target_bytes: int = TARGET_BYTES, stem: str = "package"
) -> list[Package]:
    """Group files into packages near a target size; nothing is read or written.

    Neighbours by name stay together, numbers in names counted as numbers. A file larger than the
    target is a package of its own.

    Parameters
    ----------
    files : sequence of FileRecord
    target_bytes : int
        No package of several files holds more bytes of files than this.
    stem : str
        Of the packages' names.

    Examples
    --------
    >>> files = [FileRecord(path=f"c/{n}", size=40, sha256="") for n in (10, 9, 1)]
    >>> [[file.path for file in package.files] for package in pack(files, target_bytes=100)]
    [['c/1', 'c/9'], ['c/10']]
    """
    groups: list[list[FileRecord]] = []
    room = 0
    for file in sorted(files, key=lambda file: _natural(file.path)):
        if not groups or file.size > room:
            groups.append([])
            room = target_bytes
        groups[-1].append(file)
        room -= file.size
    width = max(5, len(str(len(groups))))
    return [
        Package(name=f"{stem}-{number:0{width}d}.tar", files=tuple(group))
        for number, group in enumerate(groups)
    ]


def write_package(package: Package, *, source: Path, folder: Path) -> FileRecord:
    """Write a package as a tar; it appears under its name whole, on the disk, and read back.

    Every file is compared with its record on the way. The same package is the same bytes whoever
    writes it, and whenever.

    Parameters
    ----------
    package : Package
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
            tee: Any = _Tee(file, digest)
            with tarfile.open(fileobj=tee, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for record in package.files:
                    _add(tar, record, source / record.path)
        sync_folder(folder)
    return FileRecord(path=package.name, size=package.size, sha256=digest.hexdigest())


def read_member(tar: Path, package: Package, path: str, *, into: Path) -> None:
    """Take one file out of a package; nothing else of it is read.

    Parameters
    ----------
    tar : Path
    package : Package
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


def packages_to_json(packages: Sequence[Package]) -> list[dict[str, Any]]:
    """Index of packages as JSON: which file lies where."""
    return [
        {
            "name": package.name,
            "size": package.size,
            "files": [
                {**asdict(file), "offset": package.offsets[file.path]} for file in package.files
            ],
        }
        for package in packages
    ]


def packages_from_json(facts: Any, *, where: str) -> tuple[Package, ...]:
    """Packages from their index; places and sizes are computed anew, and compared.

    Raises
    ------
    SchemaError
        If a part is missing, or not what follows from the others.
    """
    try:
        packages = tuple(
            Package(
                name=found["name"],
                files=tuple(
                    FileRecord(path=str(f["path"]), size=int(f["size"]), sha256=str(f["sha256"]))
                    for f in found["files"]
                ),
            )
            for found in facts
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SchemaError(
            f"{where}: expected an index of packages, found damage ({error})"
        ) from error
    if packages_to_json(packages) != facts:
        raise SchemaError(f"{where}: its places are not those of the files; the index was changed")
    return packages


class _Tee:
    """Writes to a file and hashes what was written."""

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self._file = file
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


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


def _add(tar: tarfile.TarFile, record: FileRecord, path: Path) -> None:
    """Add a file, and see that it is the one that was recorded."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error
    with file:
        checked: Any = _Checked(file, path)
        tar.addfile(_header(record), checked)
        if not checked.is_whole(record.sha256):
            raise _changed(path)


def _changed(path: Path) -> SourceError:
    return SourceError(f"{path}: is not what was planned; plan the archive again")


def _header(file: FileRecord) -> tarfile.TarInfo:
    """Header that says nothing about who packed it, or when."""
    header = tarfile.TarInfo(file.path)
    header.size = file.size
    return header


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _range(path: Path, offset: int, size: int) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while size and (block := file.read(min(size, READ_BYTES))):
                size -= len(block)
                yield block
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error})") from error


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key by which c/2 comes before c/10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", path)
    ]
