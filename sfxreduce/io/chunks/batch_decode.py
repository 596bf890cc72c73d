"""Many Blosc buffers unpacked in one call, so that threads do not meet at Python's lock.

A tile takes a quarter of a millisecond to unpack, and Python's lock would be handed from thread to
thread several times for each: sixteen threads then do the work of five. So the loop over the tiles
runs compiled, without the lock, and calls Blosc itself, which the library that packs and unpacks
single buffers has on board.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.io.chunks.blosc import HEADER_BYTES

__all__ = ["can_unpack_many", "unpack_many"]

_Addresses: TypeAlias = NDArray[np.uint64]
_Loop: TypeAlias = Callable[[_Addresses, _Addresses, int, NDArray[np.int64]], None]


def can_unpack_many() -> bool:
    """Whether Blosc can be called here from compiled code."""
    return _loop() is not None


def unpack_many(
    packed: Sequence[bytes], out: NDArray[np.uint8], places: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Unpack Blosc buffers of equally many bytes, each to its own place.

    Parameters
    ----------
    packed : sequence of bytes
        Buffers whose checksums were compared; more may follow in each.
    out : ndarray of uint8
        Shape (place, byte), in memory order.
    places : ndarray of int64
        Shape (buffer,): where each of them goes.

    Returns
    -------
    ndarray of bool
        Shape (buffer,): which of them were what was expected; the places of others may hold
        anything.
    """
    loop = _loop()
    if loop is None:
        raise NotImplementedError("Blosc cannot be called from compiled code; see can_unpack_many")
    if not out.flags.c_contiguous or (places < 0).any() or (places >= len(out)).any():
        raise ValueError(f"expected {len(places)} places in {len(out)} rows in memory order")
    n_bytes = out.shape[1]
    sizes = np.fromiter(map(len, packed), np.int64, len(packed))
    fits = _fits(packed, sizes, n_bytes)
    together = np.frombuffer(b"".join(packed), np.uint8)
    sources = (together.ctypes.data + np.cumsum(sizes) - sizes).astype(np.uint64)
    targets = (out.ctypes.data + places * n_bytes).astype(np.uint64)
    found = np.zeros(np.count_nonzero(fits), np.int64)
    loop(sources[fits], targets[fits], n_bytes, found)
    fits[fits] = found == n_bytes
    return fits


def _fits(packed: Sequence[bytes], sizes: NDArray[np.int64], n_bytes: int) -> NDArray[np.bool_]:
    """Whether each header speaks of so many bytes, and of no more packed ones than there are."""
    empty = bytes(HEADER_BYTES)
    headers = b"".join(
        buffer[:HEADER_BYTES] if len(buffer) >= HEADER_BYTES else empty for buffer in packed
    )
    numbers = np.frombuffer(headers, "<u4").reshape(-1, HEADER_BYTES // 4)
    fits: NDArray[np.bool_] = (
        (numbers[:, 1] == n_bytes) & (numbers[:, 3] >= HEADER_BYTES) & (numbers[:, 3] <= sizes)
    )
    return fits


@lru_cache(maxsize=1)
def _loop() -> _Loop | None:
    """Compile the loop, once per process; None where the library hides Blosc's functions."""
    try:
        unpack = ctypes.CDLL(blosc.__file__).blosc_decompress_ctx
    except (OSError, AttributeError):
        return None
    unpack.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    unpack.restype = ctypes.c_int

    @compiled(cache=False)
    def loop(
        sources: _Addresses, targets: _Addresses, n_bytes: int, found: NDArray[np.int64]
    ) -> None:
        for i in range(len(sources)):
            found[i] = unpack(sources[i], targets[i], n_bytes, 1)

    return loop
