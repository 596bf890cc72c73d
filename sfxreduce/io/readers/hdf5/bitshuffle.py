"""Chunks that the bitshuffle filter packed with LZ4, unpacked right to where the pixels go.

HDF5 unpacks a chunk to memory of its own and copies it from there. A chunk is the number of its
bytes and of those in a block, and then the blocks, each with the length of what it was packed to;
the last pixels, fewer than eight, stand behind them as they are [1]_.

References
----------
.. [1] K. Masui et al., Astronomy and Computing 12 (2015) 181. doi:10.1016/j.ascom.2015.07.002
"""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import Stored
from sfxreduce.io.chunks.limits import check_ratio
from sfxreduce.io.readers.hdf5.guard import BITSHUFFLE, filters_of

__all__ = ["is_bitshuffle_lz4", "unpack_bitshuffle_lz4"]

HEADER = ">QI"
HEADER_BYTES = struct.calcsize(HEADER)
PIXELS_TOGETHER = 8
"""Pixels whose bits are turned together, ``BSHUF_BLOCKED_MULT`` of ``bitshuffle_core.h``."""

LZ4 = 2
ITEMSIZE_AT, PACKER_AT = 2, 4
"""Places among the numbers that the filter was given; the packer may have been left out."""


def is_bitshuffle_lz4(dataset: h5py.Dataset) -> bool:
    """Whether the one filter of a dataset is bitshuffle with LZ4, and can be called from here."""
    filters = filters_of(dataset)
    if [code for code, *_ in filters] != [BITSHUFFLE] or _function() is None:
        return False
    numbers = filters[0][2]
    if len(numbers) <= PACKER_AT or numbers[ITEMSIZE_AT] != dataset.dtype.itemsize:
        return False
    return int(numbers[PACKER_AT]) == LZ4


def unpack_bitshuffle_lz4(
    stored: Stored,
    out: NDArray[np.uint8],
    spans: NDArray[np.int64] | None = None,
    *,
    itemsize: int,
) -> None:
    """Unpack those blocks of a chunk that hold any byte of the spans.

    Parameters
    ----------
    out : ndarray of uint8
        Shape (byte,), in memory order: as many bytes as the chunk has.
    spans : ndarray of int64, optional
        Shape (span, 2): first byte of each, and the byte behind its last; all bytes if not given.
    itemsize : int
        Bytes of a pixel.

    Raises
    ------
    SourceError
        If the chunk is damaged, as far as it was looked at, or holds another number of bytes.
    """
    function = _function()
    if function is None:
        raise SourceError("packed pixels: bitshuffle cannot be called from here")
    packed = np.frombuffer(stored.whole(), np.uint8)
    check_ratio(out.size, len(packed))
    size = _block_bytes(packed, out.size, itemsize)
    n_packed = out.size // size + (out.size % size >= PIXELS_TOGETHER * itemsize)
    tail = out.size % size % (PIXELS_TOGETHER * itemsize)
    place, done = HEADER_BYTES, 0
    # The function is not told where a chunk ends, so that every length is looked at before.
    end = _end_of_blocks(packed, place, n_packed)
    if end + tail != len(packed):
        raise SourceError(f"packed pixels: expected blocks that end at {len(packed)}, found {end}")
    for first, stop in _runs(spans, out.size, size):
        place = _end_of_blocks(packed, place, min(first, n_packed) - done)
        part = out[first * size : stop * size]
        taken = function(
            packed.ctypes.data + place,
            part.ctypes.data,
            part.size // itemsize,
            itemsize,
            size // itemsize,
        )
        if taken <= 0:
            raise SourceError(f"packed pixels: cannot be unpacked (bitshuffle: {taken})")
        done, place = min(stop, n_packed), place + taken


def _runs(spans: NDArray[np.int64] | None, n_bytes: int, size: int) -> list[list[int]]:
    """First block of each run of blocks that hold any byte of the spans, and the one behind."""
    n_blocks = -(-n_bytes // size)
    if spans is None:
        return [[0, n_blocks]]
    wanted = np.zeros(n_blocks, np.bool_)
    for first, stop in spans.tolist():
        wanted[first // size : -(-stop // size)] = True
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    runs: list[list[int]] = edges.reshape(-1, 2).tolist()
    return runs


def _block_bytes(packed: NDArray[np.uint8], n_bytes: int, itemsize: int) -> int:
    """Bytes of a block, by the header of a chunk.

    Raises
    ------
    SourceError
        If it is of another number of bytes.
    """
    if len(packed) < HEADER_BYTES:
        raise SourceError(f"packed pixels: expected {HEADER_BYTES} bytes, found {len(packed)}")
    claimed, size = struct.unpack_from(HEADER, packed.data)
    together = PIXELS_TOGETHER * itemsize
    if claimed != n_bytes or size < together or size % together:
        raise SourceError(
            f"packed pixels: expected {n_bytes} bytes in blocks of a multiple of {together}, found "
            f"{claimed} in blocks of {size}"
        )
    return int(size)


@compiled
def _end_of_blocks(packed: NDArray[np.uint8], start: int, n_blocks: int) -> int:
    """Place behind so many blocks; behind the end of the chunk if there are fewer."""
    place = start
    for _ in range(n_blocks):
        if place + 4 > packed.size:
            return packed.size + 1
        length = packed[place : place + 4]
        place += 4 + (int(length[0]) << 24 | int(length[1]) << 16 | int(length[2]) << 8) + length[3]
    return place


@lru_cache(maxsize=1)
def _function() -> Any:
    """``bshuf_decompress_lz4`` of the filter that HDF5 has; None where the library hides it."""
    for path in Path(hdf5plugin.PLUGIN_PATH).glob("libh5bshuf.*"):
        try:
            function = ctypes.CDLL(str(path)).bshuf_decompress_lz4
        except (OSError, AttributeError):
            continue
        function.restype = ctypes.c_int64
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * 3)
        return function
    return None
