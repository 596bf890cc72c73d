"""Encoded bytes of tiles and shards: the part of the Zarr format that is moved, not decoded.

A shard file is the encoded tiles one after the other, then an index of (offset, length) pairs of
64-bit unsigned integers, one for each tile in grid order, then the crc32c of that index. An absent
tile has both numbers at their maximum. Source: the sharding codec of the Zarr v3 specification.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from sfxreduce.errors import SourceError

__all__ = ["ABSENT", "ShardFile", "TileCodec", "check_crc", "pack_shard"]

ABSENT = np.iinfo(np.uint64).max
BLOCK_BYTES = 32 * 1024
BLOSC_HEADER_BYTES = 16
CRC_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCodec:
    """Turns a tile into stored bytes and back: bitshuffle, zstd level 1, crc32c.

    Parameters
    ----------
    dtype : dtype
        Of a pixel.
    tile : tuple of int
        (y, x) pixels of a tile.

    Examples
    --------
    >>> codec = TileCodec(dtype=np.dtype("int16"), tile=(2, 3))
    >>> codec.decode(codec.encode(np.arange(6, dtype="int16").reshape(2, 3)))
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int16)
    """

    dtype: np.dtype[np.generic]
    tile: tuple[int, int]

    def zarr_codecs(self) -> tuple[BytesCodec, list[BloscCodec | Crc32cCodec]]:
        """Return the same chain as Zarr names it: serializer and compressors."""
        packing = BloscCodec(
            cname="zstd",
            clevel=1,
            shuffle="bitshuffle",
            blocksize=BLOCK_BYTES,
            typesize=self.dtype.itemsize,
        )
        return BytesCodec(), [packing, Crc32cCodec()]

    def encode(self, pixels: NDArray[np.generic]) -> bytes:
        """Encode one tile; one that is cut by the frame's edge is filled up with zeros."""
        if pixels.shape != self.tile:
            whole = np.zeros(self.tile, self.dtype)
            whole[: pixels.shape[0], : pixels.shape[1]] = pixels
            pixels = whole
        little = np.ascontiguousarray(pixels, self.dtype.newbyteorder("<"))
        packed: bytes = _blosc().encode(little)
        return packed + _crc(packed)

    def decode(self, encoded: bytes) -> NDArray[np.generic]:
        """Decode one tile after checking its crc32c.

        Raises
        ------
        SourceError
            If the bytes are damaged or hold another number of pixels.
        """
        check_crc(encoded)
        packed = encoded[:-CRC_BYTES]
        n_bytes = self.tile[0] * self.tile[1] * self.dtype.itemsize
        # The header is read before anything is unpacked, so that no tile can outgrow its shape.
        found = int.from_bytes(packed[4:8], "little") if len(packed) >= BLOSC_HEADER_BYTES else 0
        if found != n_bytes:
            raise SourceError(f"tile: expected {n_bytes} bytes of pixels, found {found}")
        try:
            plain = _blosc().decode(packed)
        except (RuntimeError, ValueError) as error:
            raise SourceError(f"tile: cannot be unpacked ({error})") from error
        little = np.frombuffer(plain, self.dtype.newbyteorder("<"))
        return little.astype(self.dtype, copy=False).reshape(self.tile)


class ShardFile:
    """One open shard: reads single tiles by their place in the index.

    Parameters
    ----------
    path : Path
    n_tiles : int
        Tiles in a whole shard, present or not.

    Raises
    ------
    SourceError
        If the file is missing, too short, or its index is damaged.
    """

    def __init__(self, path: Path, *, n_tiles: int) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceError(f"{path}: shard cannot be opened ({error.strerror})") from error
        try:
            self.index = self._read_index(n_tiles)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a closed shard cannot be read."""
        os.close(self._file)

    def read(self, tile: int) -> bytes | None:
        """Stored bytes of a tile, checksum included; None if the shard does not hold it.

        Raises
        ------
        SourceError
            If the file ends before the tile does, or cannot be read.
        """
        offset, length = (int(n) for n in self.index[tile])
        if offset == ABSENT:
            return None
        encoded = _pread(self._file, length, offset, self.path)
        if len(encoded) != length:
            raise SourceError(
                f"{self.path}: expected {length} bytes of tile {tile}, found {len(encoded)}"
            )
        return encoded

    def holds(self, tiles: NDArray[np.int64] | Sequence[int]) -> NDArray[np.bool_]:
        """Whether the index lists each of these tiles."""
        present: NDArray[np.bool_] = self.index[np.asarray(tiles), 0] != ABSENT
        return present

    def _read_index(self, n_tiles: int) -> NDArray[np.uint64]:
        size = os.fstat(self._file).st_size
        n_bytes = 16 * n_tiles + CRC_BYTES
        if size < n_bytes:
            raise SourceError(
                f"{self.path}: expected a shard of at least {n_bytes} bytes, found {size}"
            )
        raw = _pread(self._file, n_bytes, size - n_bytes, self.path)
        check_crc(raw)
        index = np.frombuffer(raw[:-CRC_BYTES], "<u8").reshape(n_tiles, 2)
        inside = index[index[:, 0] != ABSENT]
        room = size - n_bytes
        # Compared one by one, because the sum of two hostile numbers may wrap around.
        if np.any(inside[:, 1] > room) or np.any(inside[:, 0] > room - inside[:, 1]):
            raise SourceError(f"{self.path}: the shard's index points outside the file")
        return index


def pack_shard(tiles: Iterable[bytes | None]) -> bytes:
    """Shard file of encoded tiles in grid order; None stands for an absent tile."""
    body: list[bytes] = []
    pairs: list[tuple[int, int]] = []
    offset = 0
    for tile in tiles:
        if tile is None:
            pairs.append((ABSENT, ABSENT))
            continue
        body.append(tile)
        pairs.append((offset, len(tile)))
        offset += len(tile)
    index = np.array(pairs, "<u8").tobytes()
    return b"".join([*body, index, _crc(index)])


def check_crc(stored: bytes) -> None:
    """Compare stored bytes with the crc32c at their end.

    Raises
    ------
    SourceError
        If they differ.
    """
    if len(stored) < CRC_BYTES or _crc(stored[:-CRC_BYTES]) != stored[-CRC_BYTES:]:
        raise SourceError("stored bytes do not match their crc32c checksum")


@lru_cache(maxsize=1)
def _blosc() -> blosc.Blosc:
    """Return the packer; workers run side by side, so each packs with one thread."""
    blosc.use_threads = False
    return blosc.Blosc(
        cname="zstd", clevel=1, shuffle=blosc.Blosc.BITSHUFFLE, blocksize=BLOCK_BYTES
    )


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def _pread(file: int, length: int, offset: int, path: Path) -> bytes:
    """Read a range in full; a short read of the system is continued."""
    parts: list[bytes] = []
    while length > 0:
        try:
            part = os.pread(file, length, offset)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror})") from error
        if not part:
            break
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)
