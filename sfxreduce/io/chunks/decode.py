"""Stored chunks decoded: only the pixels that are wanted, and many chunks at once.

A Blosc buffer is a header, the places of its blocks as 32-bit integers, and the blocks, each packed
by itself. The blocks that hold the wanted pixels, behind a header and places of their own, are a
smaller Blosc buffer: no other decoder is needed.

Kernels are imported when many chunks are unpacked: Numba takes 0.25 s, and a command that only asks
what a store holds unpacks none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numcodecs import blosc
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import HEADER_BYTES, BloscHeader, Stored

__all__ = [
    "PackedTiles",
    "can_unpack_many",
    "copy_spans",
    "unpack_many",
    "unpack_parts",
    "unpack_spans",
]

Spans = NDArray[np.int64]


def copy_spans(stored: Stored, out: NDArray[np.uint8], spans: Spans, *, start: int = 0) -> None:
    """Fetch ranges of bytes that are stored as they are.

    Parameters
    ----------
    out : ndarray of uint8
        The chunk; the spans are filled, the rest is left as it is.
    spans : ndarray of int64
        Shape (span, 2): first byte of each, and the byte behind its last.
    start : int
        Where the pixels start in the stored bytes.

    Raises
    ------
    SourceError
        If they cannot be fetched.
    """
    view = out.data
    for first, stop in spans.tolist():
        stored.fetch(start + first, view[first:stop])


def unpack_spans(
    stored: Stored,
    n_bytes: int,
    spans: Spans | None = None,
    *,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Unpack those blocks of a Blosc buffer that hold any byte of the spans.

    Parameters
    ----------
    n_bytes : int
        Bytes of pixels that the buffer must hold.
    spans : ndarray of int64, optional
        Shape (span, 2), see `copy_spans`; all bytes if not given.
    out : ndarray of uint8, optional
        Shape (n_bytes,), in memory order; where the bytes go, if anywhere in particular.

    Returns
    -------
    ndarray of uint8
        Shape (n_bytes,); outside of the spans it means nothing.

    Raises
    ------
    SourceError
        If the buffer is damaged, as far as it was looked at, or holds another number of bytes.
    """
    header = BloscHeader.of(stored, n_bytes=n_bytes)
    if out is None:
        out = np.empty(n_bytes, np.uint8)
    if spans is not None and header.is_copied:
        copy_spans(stored, out, spans, start=HEADER_BYTES)
        return out
    wanted = _wanted_blocks(header, spans)
    if wanted is None:
        _decompress(stored.whole(), out)
        return out
    places = _BlockPlaces.of(stored, header)
    for first, stop in _runs(header, wanted):
        part = slice(first * header.blocksize, min(stop * header.blocksize, n_bytes))
        _decompress(places.buffer(stored, header, first, stop), out[part])
    return out


def _wanted_blocks(header: BloscHeader, spans: Spans | None) -> NDArray[np.bool_] | None:
    """Whether each block is wanted; None if all are."""
    if spans is None or not header.is_cut:
        return None
    change = np.zeros(header.n_blocks + 1, np.int64)
    np.add.at(change, spans[:, 0] // header.blocksize, 1)
    np.add.at(change, (spans[:, 1] - 1) // header.blocksize + 1, -1)
    wanted: NDArray[np.bool_] = np.cumsum(change[:-1]) > 0
    return None if wanted.all() else wanted


def _runs(header: BloscHeader, wanted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First block of each run of wanted ones, and the block behind its last."""
    edges = np.flatnonzero(np.diff(wanted, prepend=False, append=False))
    for first, stop in edges.reshape(-1, 2).tolist():
        # A last block that is short by itself would pass for a whole one, which is packed
        # otherwise.
        alone = stop - first == 1 and stop == header.n_blocks
        yield first - alone, stop


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _BlockPlaces:
    """First byte of every block in a buffer, and the byte behind its last; each shape (block,)."""

    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    @classmethod
    def of(cls, stored: Stored, header: BloscHeader) -> _BlockPlaces:
        raw = bytearray(4 * header.n_blocks)
        stored.fetch(HEADER_BYTES, memoryview(raw))
        start = np.frombuffer(raw, "<i4").astype(np.int64)
        # Several threads may have packed them, each writing its block when it was done.
        order = np.argsort(start)
        stop = np.empty_like(start)
        stop[order] = np.append(start[order[1:]], header.n_packed)
        if start[order[0]] < HEADER_BYTES + len(raw) or start[order[-1]] >= header.n_packed:
            raise SourceError(
                f"packed pixels: expected blocks within {header.n_packed} bytes, found one at "
                f"{start[order[-1]]}"
            )
        return cls(start=start, stop=stop)

    def buffer(
        self, stored: Stored, header: BloscHeader, first: int, stop: int
    ) -> NDArray[np.uint8]:
        """Blosc buffer of some consecutive blocks."""
        sizes = self.stop[first:stop] - self.start[first:stop]
        places = HEADER_BYTES + 4 * len(sizes) + np.append(0, np.cumsum(sizes))
        n_bytes = min(stop * header.blocksize, header.n_bytes) - first * header.blocksize
        buffer = np.empty(int(places[-1]), np.uint8)
        view = buffer.data
        view[:HEADER_BYTES] = header.pack(n_bytes=n_bytes, n_packed=len(buffer))
        view[HEADER_BYTES : int(places[0])] = places[:-1].astype("<i4").tobytes()
        for number, (start, end) in enumerate(pairwise(places.tolist())):
            stored.fetch(int(self.start[first + number]), view[start:end])
        return buffer


def _decompress(packed: memoryview | NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Unpack a whole buffer with the library."""
    # Workers run side by side, so each unpacks with one thread.
    blosc.use_threads = False
    try:
        blosc.decompress(packed, out)
    except (RuntimeError, ValueError) as error:
        raise SourceError(f"packed pixels: cannot be unpacked ({error})") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedTiles:
    """Stored bytes of some tiles, side by side, as they came from their file.

    Parameters
    ----------
    data : ndarray of uint8
        Shape (byte,).
    starts, sizes : ndarray of int64
        Shape (tile,): first byte of each, and how many; none of a tile that is absent.
    """

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, tiles: Sequence[bytes]) -> PackedTiles:
        """Put tiles side by side."""
        sizes = np.fromiter(map(len, tiles), np.int64, len(tiles))
        return cls(
            data=np.frombuffer(bytearray().join(tiles), np.uint8),
            starts=np.cumsum(sizes) - sizes,
            sizes=sizes,
        )

    def __len__(self) -> int:
        return self.starts.size

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        data = self.data
        for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            yield data[start : start + size]

    def take(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> PackedTiles:
        """Return some of the tiles, where they lie."""
        return PackedTiles(data=self.data, starts=self.starts[chosen], sizes=self.sizes[chosen])

    @property
    def address(self) -> np.uint64:
        """Where the bytes lie in this process, as long as they are held."""
        return np.uint64(self.data.ctypes.data)

    def hold(self, n_bytes: int, itemsize: int | None = None) -> NDArray[np.bool_]:
        """Whether each header speaks of so many bytes, and of no more packed ones than there are.

        Parameters
        ----------
        itemsize : int, optional
            Of which the header shall speak, too.
        """
        from sfxreduce.io.chunks._unpack import hold  # see the module

        return hold(self.data, self.starts, self.sizes, n_bytes, itemsize or 0)


def can_unpack_many() -> bool:
    """Whether Blosc can be called here from compiled code."""
    return _blosc("decompress_ctx") is not None and _blosc("getitem") is not None


def unpack_many(
    packed: PackedTiles, out: NDArray[np.uint8], places: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Unpack Blosc buffers of equally many bytes, each to its own place.

    Parameters
    ----------
    packed : PackedTiles
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
    from sfxreduce.io.chunks._unpack import unpack_each  # see the module

    function = _blosc("decompress_ctx")
    if function is None:
        raise NotImplementedError("Blosc cannot be called from compiled code; see can_unpack_many")
    if not out.flags.c_contiguous or (places < 0).any() or (places >= len(out)).any():
        raise ValueError(f"expected {len(places)} places in {len(out)} rows in memory order")
    fits = packed.hold(out.shape[1])
    unpack_each(function, packed.address, packed.starts, out, places, fits)
    return fits


def unpack_parts(
    packed: PackedTiles,
    out: NDArray[np.uint8],
    parts: NDArray[np.int64],
    *,
    n_bytes: int,
    itemsize: int,
) -> NDArray[np.bool_]:
    """Unpack some items of Blosc buffers, and only the blocks in which they lie.

    Parameters
    ----------
    packed : PackedTiles
        See `unpack_many`.
    out : ndarray of uint8
        Shape (buffer, byte), in memory order: the parts of each, one after the other.
    parts : ndarray of int64
        Shape (part, 2): first item of each, and the one behind its last.
    n_bytes : int
        That each buffer holds, unpacked.

    Returns
    -------
    ndarray of bool
        Shape (buffer,): which of them were what was expected.
    """
    from sfxreduce.io.chunks._unpack import unpack_parts_of_each  # see the module

    function = _blosc("getitem")
    lengths = np.diff(parts, axis=1)[:, 0]
    if function is None:
        raise NotImplementedError("Blosc cannot be called from compiled code; see can_unpack_many")
    inside = (parts[:, 0] >= 0).all() and (parts[:, 1] * itemsize <= n_bytes).all()
    expected = (len(packed), int(lengths.sum()) * itemsize)
    if not (out.flags.c_contiguous and out.shape == expected and inside and (lengths > 0).all()):
        raise ValueError(f"expected {expected} bytes in memory order for parts within {n_bytes}")
    # An item is what the buffer says it is.
    fits = packed.hold(n_bytes, itemsize)
    unpack_parts_of_each(function, packed.address, packed.starts, out, parts, itemsize, fits)
    return fits


@lru_cache(maxsize=2)
def _blosc(name: str) -> np.uint64 | None:
    """Address of a function of Blosc in this process; None where the library hides it."""
    try:
        function = ctypes.CDLL(blosc.__file__)[f"blosc_{name}"]
    except (OSError, AttributeError):
        return None
    return np.uint64(ctypes.cast(function, ctypes.c_void_p).value or 0)
