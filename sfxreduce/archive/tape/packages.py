"""Files packed to a size that tape likes: uncompressed tar, with an index of where each one lies.

Tape reads in long runs: thousands of shards of a run are slow to write, and slow to bring back. A
package is planned before a byte is read, its size and the place of each file in it included, so
that one event can be restored by reading the shard that holds it, and nothing else of the tar.
`sfxreduce.archive.tape.tars` writes and reads them.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sfxreduce.archive.rules.policy import TARGET_BYTES
from sfxreduce.archive.tape.paths import check_path
from sfxreduce.errors import SchemaError
from sfxreduce.io.files.durable import FileRecord

__all__ = ["Package", "pack", "tar_header"]

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
            places[file.path] = end + len(tar_header(file).tobuf(tarfile.PAX_FORMAT))
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


def tar_header(file: FileRecord) -> tarfile.TarInfo:
    """Header that says nothing about who packed it, or when."""
    header = tarfile.TarInfo(file.path)
    header.size = file.size
    return header


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _natural(path: str) -> list[tuple[int, str]]:
    """Sort key by which c/2 comes before c/10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", path)
    ]
