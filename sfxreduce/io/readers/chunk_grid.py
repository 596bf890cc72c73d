"""Windows of events out of chunks that lie in a file or folder as they were stored.

Only the bytes of the wanted rows are fetched, or of the Blosc blocks that hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import Stored
from sfxreduce.io.chunks.decode import copy_spans, unpack_spans
from sfxreduce.io.chunks.pieces import TilePiece, tile_pieces
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window

__all__ = [
    "ChunkGrid",
    "FoundChunk",
    "Unpack",
    "share_chunks",
    "share_of_pieces",
    "unpack_blosc",
]


Unpack: TypeAlias = Callable[[Stored, NDArray[np.uint8], NDArray[np.int64] | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChunk:
    """Stored bytes of a chunk.

    Parameters
    ----------
    unpack : callable, optional
        Fills an array with the bytes of the pixels, or with those in some spans at least, and
        raises `SourceError` if it cannot; without it the stored bytes are the pixels.
    """

    stored: Stored
    unpack: Unpack | None

    def fill(self, out: NDArray[np.uint8], spans: NDArray[np.int64] | None) -> None:
        """Fill an array with the bytes of the chunk's pixels, or with those in the spans at least.

        Raises
        ------
        SourceError
            If they are damaged, cannot be read, or are not as many as expected.
        """
        if self.unpack is not None:
            self.unpack(self.stored, out, spans)
            return
        if self.stored.n_bytes != out.size:
            raise SourceError(
                f"chunk: expected {out.size} bytes of pixels, found {self.stored.n_bytes}"
            )
        copy_spans(self.stored, out, np.array([[0, out.size]]) if spans is None else spans)


def unpack_blosc(stored: Stored, out: NDArray[np.uint8], spans: NDArray[np.int64] | None) -> None:
    """Unpack the blocks of a Blosc buffer that hold any byte of the spans; see `unpack_spans`."""
    unpack_spans(stored, out.size, spans, out=out)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkGrid:
    """Chunks of an array (event, frame axes), in C order.

    Parameters
    ----------
    frame_shape : tuple of int
        Of the array.
    chunk_shape : tuple of int
        (events, frame axes) of a chunk; the last ones are stored whole as well.
    dtype : dtype
        Of a stored pixel, byte order included.
    fill : int or float
        Pixels of a chunk that is not there.
    find : callable
        Opens a chunk by its number along the events and its number within a frame, in grid order;
        None if it is not there.
    """

    frame_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    fill: float
    find: Callable[[int, int], AbstractContextManager[FoundChunk | None]]

    def read(
        self,
        events: Sequence[int],
        detector: Detector,
        window: Window,
        pictures: NDArray[np.generic],
    ) -> None:
        """Read a window of events that share their chunks; nothing is fetched twice.

        Parameters
        ----------
        events : sequence of int
            See `share_chunks`.
        pictures : ndarray
            Shape (event, tile, row, column): filled, but where there is no source pixel.

        Raises
        ------
        SourceError
            If a chunk is damaged, as far as it was looked at, or cannot be read.
        """
        step, *tile_shape = self.chunk_shape
        places = np.array(events) % step
        for piece in tile_pieces(self.frame_shape, tuple(tile_shape), detector, window):
            chunk = self._chunk(events[0] // step, piece.tile, piece.spans, np.unique(places))
            for place, picture in zip(places, pictures, strict=True):
                piece.put(chunk[place], picture)

    def read_frame(self, event: int, frame: NDArray[np.generic]) -> bool:
        """Read a frame that is a chunk, right to where it goes; False if it is none.

        Parameters
        ----------
        frame : ndarray
            In memory order: filled.

        Raises
        ------
        SourceError
            If the chunk is damaged or cannot be read.
        """
        if tuple(self.chunk_shape) != (1, *self.frame_shape) or frame.dtype != self.dtype:
            return False
        with self.find(event, 0) as found:
            if found is not None:
                found.fill(frame.reshape(-1).view(np.uint8), None)
            return found is not None

    def _chunk(
        self, row: int, tile: int, spans: NDArray[np.int64] | None, places: NDArray[np.int64]
    ) -> NDArray[np.generic]:
        """Pixels of a chunk, of which the spans of the events at these places mean something."""
        n_events, *tile_shape = self.chunk_shape
        n_pixels = math.prod(tile_shape)
        one = np.array([[0, n_pixels]]) if spans is None else spans
        wanted = (one + n_pixels * places[:, np.newaxis, np.newaxis]).reshape(-1, 2)
        all_wanted = spans is None and places.size == n_events
        with self.find(row, tile) as found:
            if found is None:
                return np.broadcast_to(np.array(self.fill, self.dtype), (n_events, n_pixels))
            pixels = np.empty(n_events * n_pixels * self.dtype.itemsize, np.uint8)
            found.fill(pixels, None if all_wanted else wanted * self.dtype.itemsize)
        return pixels.view(self.dtype).reshape(n_events, n_pixels)


def share_chunks(
    events: Sequence[int], events_per_chunk: int
) -> Iterator[tuple[list[int], list[int]]]:
    """Places in `events`, and events, of each run of neighbours that lie in the same chunks.

    Examples
    --------
    >>> list(share_chunks([4, 5, 9, 4], 4))
    [([0, 1], [4, 5]), ([2], [9]), ([3], [4])]
    """
    for _, group in groupby(enumerate(events), key=lambda item: item[1] // events_per_chunk):
        places, wanted = zip(*group, strict=True)
        yield list(places), list(wanted)


def share_of_pieces(
    pieces: Sequence[TilePiece],
    frame_shape: Sequence[int],
    chunk_shape: Sequence[int],
    *,
    in_parts: bool,
) -> float:
    """Share of a frame's chunks that is decoded for some pieces of them.

    Parameters
    ----------
    pieces : sequence of TilePiece
        See `tile_pieces`.
    frame_shape, chunk_shape : sequence of int
        Of the same axes.
    in_parts : bool
        Whether less than a chunk can be fetched, as `ChunkGrid` does.
    """
    n_pixels = math.prod(chunk_shape)
    n_chunks = math.prod(-(-n // side) for n, side in zip(frame_shape, chunk_shape, strict=True))
    wanted = [
        int(np.diff(piece.spans, axis=1).sum())
        if in_parts and piece.spans is not None
        else n_pixels
        for piece in pieces
    ]
    return sum(wanted) / (n_chunks * n_pixels)
