"""Encoded bytes of tiles and shards: the part of the Zarr format that is moved, not decoded.

A shard file is the encoded tiles one after the other, then an index of (offset, length) pairs of
64-bit unsigned integers, one for each tile in grid order, then the crc32c of that index. An absent
tile has both numbers at their maximum. Source: the sharding codec of the Zarr v3 specification.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
import xxhash
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import (
    DENSE_PACKING,
    SHUFFLES,
    USUAL_PACKING,
    FileRange,
    MemoryRange,
    Packing,
)
from sfxreduce.io.chunks.decode import PackedTiles, can_unpack_many, unpack_many, unpack_spans
from sfxreduce.io.files.safe_read import open_regular

__all__ = [
    "ABSENT",
    "ShardFile",
    "TileCodec",
    "are_sound",
    "check_crc",
    "packed_bytes",
    "payload_hash",
    "pixel_hash",
    "shard_parts",
    "with_crc",
]

ABSENT = np.iinfo(np.uint64).max
NEVER_SPLIT = 2
"""``BLOSC_NEVER_SPLIT`` of ``blosc.h``."""

CRC_BYTES = 4
CRC_RESIDUE = 0x48674BC7
"""The crc32c of anything followed by its own crc32c."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TileCodec:
    """Turns a tile into stored bytes and back: Blosc, then crc32c.

    Parameters
    ----------
    dtype : dtype
        Of a pixel.
    tile : tuple of int
        (y, x) pixels of a tile.
    packing : Packing
        How tiles are packed; `USUAL_PACKING` if not given.

    Examples
    --------
    >>> codec = TileCodec(dtype=np.dtype("int16"), tile=(2, 3))
    >>> codec.decode(codec.encode(np.arange(6, dtype="int16").reshape(2, 3)))
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int16)
    """

    dtype: np.dtype[np.generic]
    tile: tuple[int, int]
    packing: Packing = USUAL_PACKING

    def zarr_codecs(self) -> tuple[BytesCodec, list[BloscCodec | Crc32cCodec]]:
        """Return the same chain as Zarr names it: serializer and compressors."""
        packing = BloscCodec(**asdict(self.packing), typesize=self.dtype.itemsize)
        # Zarr gives single bytes no order, and does not know the chain again if we do.
        serializer = BytesCodec() if self.dtype.itemsize > 1 else BytesCodec(endian=None)
        return serializer, [packing, Crc32cCodec()]

    def encode(self, pixels: NDArray[np.generic]) -> bytes:
        """Encode one tile; one that is cut by the frame's edge is filled up with zeros."""
        if pixels.shape != self.tile:
            whole = np.zeros(self.tile, self.dtype)
            whole[: pixels.shape[0], : pixels.shape[1]] = pixels
            pixels = whole
        little = np.ascontiguousarray(pixels, self.dtype.newbyteorder("<"))
        return with_crc(_packer(self.packing).encode(little))

    def decode(
        self,
        encoded: bytes,
        spans: NDArray[np.int64] | None = None,
        *,
        out: NDArray[np.generic] | None = None,
    ) -> NDArray[np.generic]:
        """Decode one tile after checking its crc32c.

        Parameters
        ----------
        spans : ndarray of int64, optional
            Shape (span, 2): ranges of flat places of the pixels that are wanted, and unpacked; all
            if not given.
        out : ndarray, optional
            Where the pixels go, if anywhere in particular: shape of a tile, in memory order. They
            are unpacked right there if it is of the stored dtype, and threads that decode side by
            side meet less often.

        Returns
        -------
        ndarray
            Shape of a tile; outside of the spans it means nothing.

        Raises
        ------
        SourceError
            If the bytes are damaged or hold another number of pixels.
        """
        check_crc(encoded)
        itemsize, stored = self.dtype.itemsize, self.dtype.newbyteorder("<")
        there = None
        if out is not None and out.dtype == stored:
            there = out.reshape(-1).view(np.uint8)
        plain = unpack_spans(
            MemoryRange(data=memoryview(encoded)[:-CRC_BYTES]),
            self.tile[0] * self.tile[1] * itemsize,
            None if spans is None else spans * itemsize,
            out=there,
        )
        tile = plain.view(stored).reshape(self.tile)
        if out is None:
            return tile.astype(self.dtype, copy=False)
        if there is None:
            out[...] = tile
        return out

    def decode_many(
        self, encoded: PackedTiles, out: NDArray[np.generic], places: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Decode tiles, all in one call where that can be; see `decode`.

        Parameters
        ----------
        out : ndarray
            Shape (place, y, x), in memory order.
        places : ndarray of int64
            Shape (tile,): where each of them goes.

        Returns
        -------
        ndarray of bool
            Shape (tile,): which of them could be decoded; the places of others may hold anything.
        """
        if out.dtype == self.dtype.newbyteorder("<") and can_unpack_many():
            sound = are_sound(encoded)
            rows = out.reshape(len(out), -1).view(np.uint8)
            sound[sound] = unpack_many(encoded.take(sound), rows, places[sound])
            return sound
        return np.array(
            [
                self._decodes(one.tobytes(), place, out)
                for one, place in zip(encoded, places, strict=True)
            ],
            np.bool_,
        )

    def _decodes(self, encoded: bytes, place: int, out: NDArray[np.generic]) -> bool:
        """Decode one tile; whether that went well."""
        try:
            self.decode(encoded, out=out[place])
        except SourceError:
            return False
        return True


class ShardFile:
    """One open shard: reads single tiles by their place in the index.

    Parameters
    ----------
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
            self._file = open_regular(path, follow=False)
        except OSError as error:
            raise SourceError(f"{path}: shard cannot be opened ({error.strerror})") from error
        size = os.fstat(self._file).st_size
        self._range = FileRange(file=self._file, path=path, start=0, n_bytes=size)
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
        offset, length = self.index[tile].tolist()
        return None if offset == ABSENT else self._fetched(offset, length)

    def read_tiles(self, tiles: NDArray[np.int64]) -> PackedTiles:
        """Stored bytes of several tiles, checksums included; those that lie together in one go.

        Raises
        ------
        SourceError
            If the file ends before a tile does, or cannot be read.
        """
        offsets, sizes = self.index[tiles].T
        sizes = np.where(offsets == ABSENT, 0, sizes).astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        data = np.empty(int(sizes.sum()), np.uint8)
        ends_before = offsets[1:] != offsets[:-1] + sizes[:-1].astype(np.uint64)
        edges = [0, *(np.flatnonzero(ends_before) + 1).tolist(), len(tiles)]
        for first, stop in pairwise(edges):
            n_bytes = int(sizes[first:stop].sum())
            if n_bytes:
                start = int(starts[first])
                self._range.fetch(int(offsets[first]), data[start : start + n_bytes].data)
        return PackedTiles(data=data, starts=starts, sizes=sizes)

    def holds(self, tiles: NDArray[np.int64] | Sequence[int]) -> NDArray[np.bool_]:
        """Whether the index lists each of these tiles."""
        present: NDArray[np.bool_] = self.index[np.asarray(tiles), 0] != ABSENT
        return present

    def _fetched(self, start: int, n_bytes: int) -> bytes:
        data = bytearray(n_bytes)
        self._range.fetch(start, memoryview(data))
        return bytes(data)

    def _read_index(self, n_tiles: int) -> NDArray[np.uint64]:
        size = self._range.n_bytes
        n_bytes = 16 * n_tiles + CRC_BYTES
        if size < n_bytes:
            raise SourceError(
                f"{self.path}: expected a shard of at least {n_bytes} bytes, found {size}"
            )
        raw = self._fetched(size - n_bytes, n_bytes)
        check_crc(raw)
        index = np.frombuffer(raw[:-CRC_BYTES], "<u8").reshape(n_tiles, 2)
        inside = index[index[:, 0] != ABSENT]
        room = size - n_bytes
        # Compared one by one, because the sum of two hostile numbers may wrap around.
        if np.any(inside[:, 1] > room) or np.any(inside[:, 0] > room - inside[:, 1]):
            raise SourceError(f"{self.path}: the shard's index points outside the file")
        return index


def shard_parts(tiles: Iterable[bytes | None]) -> list[bytes]:
    """Shard file of encoded tiles in grid order, in parts; None stands for an absent tile.

    They are not put together here: that would copy every tile once more.
    """
    parts: list[bytes] = []
    pairs: list[tuple[int, int]] = []
    offset = 0
    for tile in tiles:
        if tile is None:
            pairs.append((ABSENT, ABSENT))
            continue
        parts.append(tile)
        pairs.append((offset, len(tile)))
        offset += len(tile)
    return [*parts, with_crc(np.array(pairs, "<u8").tobytes())]


def packed_bytes(frame: NDArray[np.generic], packing: Packing = DENSE_PACKING) -> int:
    """Bytes of a frame, packed panel by panel, checksums included."""
    codec = TileCodec(dtype=frame.dtype, tile=(frame.shape[-2], frame.shape[-1]), packing=packing)
    return sum(len(codec.encode(panel)) for panel in frame.reshape(-1, *frame.shape[-2:]))


def with_crc(data: bytes) -> bytes:
    """Bytes followed by their crc32c."""
    return data + int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")


def check_crc(stored: bytes) -> None:
    """Compare stored bytes with the crc32c at their end.

    Raises
    ------
    SourceError
        If they differ.
    """
    if not _is_sound(stored):
        raise SourceError("stored bytes do not match their crc32c checksum")


def are_sound(stored: PackedTiles) -> NDArray[np.bool_]:
    """Whether the crc32c at the end of each tile is that of its bytes before: shape (tile,)."""
    return np.fromiter(map(_is_sound, stored), np.bool_, len(stored))


def _is_sound(stored: bytes | NDArray[np.uint8]) -> bool:
    """Whether the crc32c at the end is that of the bytes before."""
    # One pass over them as they lie; to compare the numbers, they would have to be copied.
    return len(stored) >= CRC_BYTES and bool(google_crc32c.value(stored) == CRC_RESIDUE)


@lru_cache(maxsize=8)
def _packer(packing: Packing) -> blosc.Blosc:
    """Return the packer; workers run side by side, so each packs with one thread.

    Blosc would cut each block into as many streams as a pixel has bytes, which bits that were
    shuffled gain nothing by: half as many bytes again on frames of photons. It has one setting for
    a whole process, and buffers unpack alike by either. Where the library hides it, they get
    larger.
    """
    blosc.use_threads = False
    with suppress(OSError, AttributeError):
        ctypes.CDLL(blosc.__file__).blosc_set_splitmode(NEVER_SPLIT)
    return blosc.Blosc(
        cname=packing.cname,
        clevel=packing.clevel,
        shuffle=SHUFFLES.index(packing.shuffle),
        blocksize=packing.blocksize,
    )


def pixel_hash(pixels: NDArray[np.generic]) -> int:
    """XXH3, 64 bits, of pixels in their order; never 0, which stands for pixels nobody read."""
    return int(xxhash.xxh3_64_intdigest(np.ascontiguousarray(pixels).data)) or 1


MISSING_TILE = b"\xff" * 8


def payload_hash(tiles: Iterable[bytes | None]) -> str:
    """XXH3, 128 bits, of an event's tiles in grid order as they are stored, in hexadecimal.

    A missing tile counts as the eight bytes that the index of a shard has for it.

    Examples
    --------
    >>> payload_hash([b"ab", b"c"]) == payload_hash([b"a", b"bc"])
    True
    """
    digest = xxhash.xxh3_128()
    for tile in tiles:
        digest.update(MISSING_TILE if tile is None else tile)
    return digest.hexdigest()
