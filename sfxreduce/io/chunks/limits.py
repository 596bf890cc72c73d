"""Limits of frames and of packed buffers, held before memory is taken or anything is unpacked.

Three kilobytes of Zstandard may stand for a hundred megabytes of zeros. What a buffer claims, and
what it could hold at most, is held against what it should hold.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np

from sfxreduce.errors import SchemaError, SourceError
from sfxreduce.run.detector import MOST_FRAME_PIXELS

__all__ = [
    "MOST_CHUNK_BYTES",
    "MOST_RATIO",
    "SPARED_BYTES",
    "check_extent",
    "check_frames",
    "check_packed",
    "check_ratio",
]

MOST_CHUNK_BYTES = 2 << 30
"""Largest chunk that is unpacked."""

MOST_RATIO = 1000
"""Most times that a large chunk may be larger than what is stored of it."""

SPARED_BYTES = 256 << 20
"""Chunks up to this size may be of one value only, and packed to almost nothing: a mask, say."""

ZSTD_FRAME, ZSTD_SKIPPED, ZSTD_BLOCK_BYTES = 0xFD2FB528, 0x184D2A50, 128 << 10
ZSTD_SIZES = ("<B", "<H", "<I", "<Q")
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


def check_packed(packed: memoryview, *, packing: str, most_bytes: int) -> None:
    """Refuse a buffer that would unpack to more than its chunk has.

    Parameters
    ----------
    packed : memoryview
        Bytes as they are stored, a checksum behind them left out.
    packing : str
        ``blosc``, ``zstd``, ``lz4``, ``gzip`` or ``zlib``.
    most_bytes : int
        Most that may come out.

    Raises
    ------
    SourceError
        If more would come out, or it is a bomb: large, and more than `MOST_RATIO` times as large
        as what is stored.
    """
    n_bytes = CLAIMS[packing](packed, most_bytes)
    if n_bytes > most_bytes:
        raise SourceError(
            f"packed chunk: expected at most {most_bytes} bytes, found {packing} that unpacks to "
            f"{n_bytes} or more"
        )
    check_ratio(n_bytes, len(packed))


def check_ratio(n_bytes: int, n_packed: int) -> None:
    """Refuse a chunk that is far larger than what is stored of it.

    Parameters
    ----------
    n_bytes, n_packed : int
        Of the chunk, and of what is stored.

    Raises
    ------
    SourceError
        If it is larger than `MOST_CHUNK_BYTES`; or than `SPARED_BYTES`, and more than `MOST_RATIO`
        times what is stored.
    """
    if n_bytes > MOST_CHUNK_BYTES:
        raise SourceError(
            f"chunk: expected at most {MOST_CHUNK_BYTES} bytes, found {n_bytes}; store it in "
            "smaller chunks"
        )
    if n_bytes > SPARED_BYTES and n_bytes > MOST_RATIO * n_packed:
        raise SourceError(
            f"packed chunk: expected at most {MOST_RATIO} times the {n_packed} bytes that are "
            f"stored, found {n_bytes}; a file that is meant to fill the memory looks like that"
        )


def _blosc(packed: memoryview, _most: int) -> int:
    """Bytes that the header claims, which is what the library allocates."""
    return int(struct.unpack_from("<I", packed, 4)[0]) if len(packed) >= 16 else 0


def _lz4(packed: memoryview, _most: int) -> int:
    """Bytes claimed in front of the buffer, as numcodecs stores it."""
    return int(struct.unpack_from("<I", packed, 0)[0]) if len(packed) >= 4 else 0


def _deflate(packed: memoryview, most: int) -> int:
    """Bytes that come out, counted up to one more than allowed: the format does not say it."""
    # Deflate does not pack a byte into less than a bit and a half.
    if len(packed) * 1100 <= most:
        return 0
    n_bytes = 0
    rest = bytes(packed)
    # Several members may follow one another; what is damaged ends there, for the decoder as well.
    with suppress(zlib.error):
        while rest and n_bytes <= most:
            unpacker = zlib.decompressobj(GZIP_OR_ZLIB)
            while rest and n_bytes <= most and not unpacker.eof:
                n_bytes += len(unpacker.decompress(rest, 1 << 20))
                rest = unpacker.unconsumed_tail
            rest = unpacker.unused_data
    return n_bytes


def _zstd(packed: memoryview, _most: int) -> int:
    """Sum of what the frames claim; of a frame that claims nothing, the most its blocks can hold.

    Source: RFC 8878, sections 3.1.1 and 3.1.2.
    """
    return sum(_zstd_frames(packed))


def _zstd_frames(packed: memoryview) -> Iterator[int]:
    place = 0
    try:
        while place + 4 <= len(packed):
            (magic,) = struct.unpack_from("<I", packed, place)
            if magic & 0xFFFFFFF0 == ZSTD_SKIPPED:
                place += 8 + int(struct.unpack_from("<I", packed, place + 4)[0])
                continue
            if magic != ZSTD_FRAME:
                return
            claimed, place, has_checksum = _zstd_header(packed, place + 4)
            blocks, place = _zstd_blocks(packed, place)
            place += 4 * has_checksum
            # What a frame claims is allocated for it, whatever its blocks hold.
            yield blocks if claimed is None else claimed
    except struct.error:
        return


def _zstd_header(packed: memoryview, place: int) -> tuple[int | None, int, bool]:
    """Size that a frame claims, where its blocks begin, and whether a checksum follows them."""
    (descriptor,) = struct.unpack_from("<B", packed, place)
    single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    place += 1 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    if not size_flag and not single:
        return None, place, bool(descriptor & 4)
    (size,) = struct.unpack_from(ZSTD_SIZES[size_flag], packed, place)
    return size + 256 * (size_flag == 1), place + (1 << size_flag), bool(descriptor & 4)


def _zstd_blocks(packed: memoryview, place: int) -> tuple[int, int]:
    """Most bytes that the blocks of a frame can hold, and where they end, which may be early."""
    n_bytes, is_last = 0, False
    while not is_last and place + 3 <= len(packed):
        low, high = struct.unpack_from("<HB", packed, place)
        header = low | high << 16
        is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        n_bytes += min(size, ZSTD_BLOCK_BYTES) if kind < 2 else ZSTD_BLOCK_BYTES
        place += 3 + (1 if kind == 1 else size)
    return n_bytes, place


CLAIMS: dict[str, Callable[[memoryview, int], int]] = {
    "blosc": _blosc,
    "zstd": _zstd,
    "lz4": _lz4,
    "gzip": _deflate,
    "zlib": _deflate,
}


ITEM_SIZES = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
"""Bytes of a pixel by kind. What else NumPy has, such as 80-bit floats, differs by machine."""

MOST_UNSTORED_EVENTS = 1 << 20
"""Events of which less than a byte each may be stored; their columns take 100 MB."""

MOST_UNSTORED_BYTES = 1 << 40
"""Bytes of frames of which less than a thousandth may be stored."""


def check_extent(
    shape: Sequence[int],
    dtype: np.dtype[np.generic],
    *,
    stored: Callable[[], int],
    where: str,
) -> None:
    """Refuse a run that declares far more than is stored of it, before anything is made of it.

    Parameters
    ----------
    shape : sequence of int
        (event, frame axes).
    dtype : dtype
        Of a pixel.
    stored : callable
        Bytes that are stored; asked only of a run that declares very much.
    where : str
        Path of the frames, for the message.

    Raises
    ------
    SchemaError
        If it declares a million events and less than a byte is stored of each, or a terabyte of
        which less than a thousandth is stored.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    many = shape[0] > MOST_UNSTORED_EVENTS
    large = n_bytes > MOST_UNSTORED_BYTES
    if (many and shape[0] > stored()) or (large and n_bytes > MOST_RATIO * stored()):
        raise SchemaError(
            f"{where}: {shape[0]} events of {n_bytes} bytes are declared, but only {stored()} "
            "bytes are stored; was it written whole? Fetch it again"
        )


def check_frames(frame_shape: Sequence[int], dtype: np.dtype[np.generic], *, where: str) -> None:
    """Refuse frames that no later step can hold, before anything is made in their shape.

    Parameters
    ----------
    frame_shape : sequence of int
        Of one frame.
    dtype : dtype
        Of a pixel.
    where : str
        Path of the frames, for the message.

    Raises
    ------
    SchemaError
        If pixels are no integers or floats of a usual size, or there are none or too many.
    """
    if dtype.itemsize not in ITEM_SIZES.get(dtype.kind, ()):
        raise SchemaError(
            f"{where}: expected frames of integers of 1 to 8 bytes or floats of 2, 4 or 8, found "
            f"{dtype}; convert them first"
        )
    if not 0 < math.prod(frame_shape) <= MOST_FRAME_PIXELS:
        raise SchemaError(
            f"{where}: expected frames of 1 to {MOST_FRAME_PIXELS} pixels, found a frame of "
            f"{tuple(frame_shape)}; are the axes in order?"
        )
