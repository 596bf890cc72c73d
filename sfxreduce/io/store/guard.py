"""A Zarr store on the disk, read with suspicion: nothing outside of it, nothing that blows up.

Whatever the zarr library asks for goes through here: metadata is judged before it is handed on,
and a chunk before it is unpacked.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from numcodecs import blosc, gzip, lz4, zlib, zstd
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype
from zarr.storage import LocalStore

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.io.chunks.limits import MOST_CHUNK_BYTES, MOST_RATIO, SPARED_BYTES, check_packed
from sfxreduce.io.files.safe_read import MOST_JSON_BYTES, open_file, parse_json
from sfxreduce.io.store.guard_rules import ArrayRules, rules_of_array

__all__ = ["GuardedStore", "check_tree"]

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
ARRAY_METADATA = ("zarr.json", ".zarray")
FRAMES = "frames"
MOST_DEPTH = 64
MOST_CHUNKS = 1 << 20
"""Chunks of an array that is read whole, as all but the frames are."""

ABSENT = np.iinfo(np.uint64).max

UNPACKERS = {
    "": lambda packed: packed,
    "blosc": blosc.decompress,
    "zstd": zstd.decompress,
    "lz4": lz4.decompress,
    "gzip": gzip.GZip().decode,
    "zlib": zlib.Zlib().decode,
}


class GuardedStore(LocalStore):
    """Read-only folder of a Zarr store.

    Parameters
    ----------
    read_only : bool
        For the interface; it always is.
    """

    def __init__(self, root: Path | str, *, read_only: bool = True) -> None:  # noqa: ARG002
        super().__init__(root, read_only=True)
        self._real = Path(os.path.realpath(root))
        self._rules: dict[str, ArrayRules | None] = {}

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Bytes under a key, or None; see the base class.

        Raises
        ------
        SourceError
            If the key leads out of the store, or what lies there is not to be unpacked.
        SchemaError
            If it is metadata that is refused; see `rules_of_array`.
        """
        return await asyncio.to_thread(
            self.get_sync, key, prototype=prototype, byte_range=byte_range
        )

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Bytes under a key, or None; see `get`."""
        try:
            data = self._read(key, byte_range)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise SourceError(f"{self._real / key}: cannot be read ({error.strerror})") from error
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Bytes under several keys; see `get`."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def rules(self, array: str) -> ArrayRules | None:
        """Rules of the array under a path of the store; None if there is none.

        Raises
        ------
        SchemaError
            If its metadata is refused.
        """
        if array not in self._rules:
            found = (f"{array}/{name}".lstrip("/") for name in ARRAY_METADATA)
            documents = (self.get_sync(key) for key in found)
            # Reading judges it, and takes the rules down.
            if not any(document is not None for document in documents):
                self._rules[array] = None
        return self._rules.get(array)

    def _read(self, key: str, byte_range: ByteRequest | None) -> bytes:
        path = self._locate(key)
        name = path.name
        with open_file(path, follow=False) as file:
            size = os.fstat(file.fileno()).st_size
            start, stop = _span(byte_range, size)
            most = MOST_JSON_BYTES if name in METADATA else 2 * MOST_CHUNK_BYTES
            if stop - start > most:
                raise SourceError(f"{path}: expected at most {most} bytes, found {stop - start}")
            file.seek(start)
            data = file.read(max(stop - start, 0))
        if name in METADATA:
            self._judge(key, data)
        else:
            self._check_chunk(key, data, byte_range)
        return data

    def _locate(self, key: str) -> Path:
        """Path of a key; no part of it may be a link."""
        parts = PurePosixPath(key).parts
        if key.startswith("/") or ".." in parts or "\0" in key:
            raise SourceError(f"{self._real}: the key {key!r:.80} leads out of the store")
        path = self._real.joinpath(*parts)
        if os.path.realpath(path) != str(path):
            raise SourceError(
                f"{path}: expected a file of the store, found a symbolic link; copy the store "
                "with what its links lead to"
            )
        return path

    def _judge(self, key: str, data: bytes) -> None:
        """Judge metadata, and take down the rules of an array."""
        where = str(self._real / key)
        try:
            document = parse_json(data)
        except ValueError as error:
            raise SchemaError(f"{where}: expected JSON, found {error}; fetch it again") from error
        if not isinstance(document, dict):
            raise SchemaError(f"{where}: expected a JSON object, found something else")
        name = PurePosixPath(key).name
        if name == ".zarray" or (name == "zarr.json" and document.get("node_type") == "array"):
            array = key.rpartition("/")[0]
            rules = rules_of_array(document, where=where)
            if PurePosixPath(array).name != FRAMES:
                self._check_whole(array, rules, where)
            self._rules[array] = rules

    def _check_whole(self, array: str, rules: ArrayRules, where: str) -> None:
        """Refuse an array that is to be read whole and is far larger than what is stored."""
        if rules.n_chunks > MOST_CHUNKS:
            raise SchemaError(
                f"{where}: expected at most {MOST_CHUNKS} chunks, found {rules.n_chunks}; store "
                "the array in larger chunks"
            )
        if rules.n_bytes > SPARED_BYTES:
            stored = sum(
                file.lstat().st_size for file in (self._real / array).rglob("*") if file.is_file()
            )
            if rules.n_bytes > MOST_RATIO * stored:
                raise SchemaError(
                    f"{where}: the array declares {rules.n_bytes} bytes and stores {stored}; more "
                    f"than {MOST_RATIO} to 1 is not believed, fetch the store again"
                )

    def _check_chunk(self, key: str, data: bytes, byte_range: ByteRequest | None) -> None:
        """Refuse a chunk that would unpack to more than it should."""
        rules = self._owner(key)
        if rules is None:
            return
        stored = memoryview(data)
        if not rules.inner_chunks:
            _check(stored, rules, f"{self._real / key}")
        elif byte_range is None:
            for part in _inner_chunks(stored, rules):
                _check(part, rules, f"{self._real / key}")
        elif not _is_index(byte_range, rules):
            _check(stored, rules, f"{self._real / key}")

    def _owner(self, key: str) -> ArrayRules | None:
        """Rules of the array that a chunk belongs to."""
        for parent in PurePosixPath(key).parents:
            rules = self.rules("" if str(parent) == "." else str(parent))
            if rules is not None:
                return rules
        return None


def check_tree(root: Path) -> None:
    """Refuse a store with a symbolic link, a pipe or a device anywhere in it.

    Parameters
    ----------
    root : Path
        May itself be a link, which whoever named it has chosen.

    Raises
    ------
    SourceError
        If there is one, or a folder cannot be listed.
    """
    folders = [(str(root), 0)]
    while folders:
        folder, depth = folders.pop()
        if depth > MOST_DEPTH:
            raise SourceError(f"{folder}: expected at most {MOST_DEPTH} folders in one another")
        try:
            with os.scandir(folder) as entries:
                folders.extend((name, depth + 1) for name in _subfolders(entries))
        except OSError as error:
            raise SourceError(
                f"{folder}: cannot be listed ({error.strerror}); is it there, may it be read?"
            ) from error


def _subfolders(entries: Iterable[os.DirEntry[str]]) -> Iterator[str]:
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield entry.path
        elif not entry.is_file(follow_symlinks=False):
            is_link = stat.S_ISLNK(entry.stat(follow_symlinks=False).st_mode)
            raise SourceError(
                f"{entry.path}: expected files and folders in a store, found a "
                f"{'symbolic link' if is_link else 'pipe or device'}; copy the store without it"
            )


def _span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """Range of bytes of a file that is asked for."""
    match byte_range:
        case RangeByteRequest(start=start, end=end):
            return min(start, size), min(end, size)
        case OffsetByteRequest(offset=offset):
            return min(offset, size), size
        case SuffixByteRequest(suffix=suffix):
            return max(0, size - suffix), size
    return 0, size


def _is_index(byte_range: ByteRequest, rules: ArrayRules) -> bool:
    """Whether a range is the index of a shard, which is not packed."""
    match byte_range:
        case SuffixByteRequest():
            return not rules.index_first
        case RangeByteRequest(start=0, end=end):
            return rules.index_first and end == rules.index_bytes
    return False


def _inner_chunks(shard: memoryview, rules: ArrayRules) -> Iterator[memoryview]:
    """Stored chunks of a whole shard, as far as its index makes sense."""
    n_index = 16 * rules.inner_chunks
    start = 0 if rules.index_first else len(shard) - rules.index_bytes
    if start < 0 or len(shard) < rules.index_bytes:
        return
    pairs = np.frombuffer(shard[start : start + n_index], "<u8").reshape(-1, 2).tolist()
    for offset, length in pairs:
        if offset != ABSENT and offset + length <= len(shard):
            yield shard[offset : offset + length]


def _check(stored: memoryview, rules: ArrayRules, where: str) -> None:
    """Hold one stored chunk against its array."""
    packed = stored[: len(stored) - rules.crc_bytes] if rules.crc_bytes else stored
    try:
        if rules.packing:
            check_packed(packed, packing=rules.packing, most_bytes=rules.most_unpacked)
        if rules.is_text:
            _check_text(packed, rules)
    except SourceError as error:
        raise SourceError(f"{where}: {error}") from error


def _check_text(packed: memoryview, rules: ArrayRules) -> None:
    """Refuse text that claims more entries than its chunk has: they would be made before read."""
    try:
        text = bytes(memoryview(UNPACKERS[rules.packing](bytes(packed)))[:4])
    except (RuntimeError, ValueError, OSError, EOFError):
        return  # what cannot be unpacked is an error of the decoder as well
    most = int(np.prod(rules.chunk, dtype=object))
    if int.from_bytes(text, "little") > most:
        raise SourceError(f"text: expected at most {most} entries, found more")
