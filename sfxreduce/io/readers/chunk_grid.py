"""Windows of events out of chunks that lie in a file or folder as they were stored.

Only the bytes of the wanted rows are fetched, or of the Blosc blocks that hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import Stored
from sfxreduce.io.chunks.decode import copy_spans, unpack_spans
from sfxreduce.io.chunks.pieces import TilePiece, tile_pieces
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Window

__all__ = ["ChunkGrid", "FoundChunk", "share_chunks", "share_of_pieces"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChunk:
    """Stored bytes of a chunk.

    Parameters
    ----------
    is_packed : bool
        Whether they are a Blosc buffer; otherwise they are the pixels.
    """

    stored: Stored
    is_packed: bool

    def pixels(self, n_bytes: int, spans: NDArray[np.int64] | None) -> NDArray[np.uint8]:
        """Bytes of the chunk's pixels, of which the spans, or all, mean something.

        Raises
        ------
        SourceError
            If they are damaged, cannot be read, or are not as many as expected.
        """
        if self.is_packed:
            return unpack_spans(self.stored, n_bytes, spans)
        if self.stored.n_bytes != n_bytes:
            raise SourceError(
                f"chunk: expected {n_bytes} bytes of pixels, found {self.stored.n_bytes}"
            )
        out = np.empty(n_bytes, np.uint8)
        copy_spans(self.stored, out, np.array([[0, n_bytes]]) if spans is None else spans)
        return out


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
        self, events: Sequence[int], detector: Detector, window: Window
    ) -> NDArray[np.generic]:
        """Read a window of events that share their chunks; nothing is fetched twice.

        Parameters
        ----------
        events : sequence of int
            See `share_chunks`.

        Returns
        -------
        ndarray
            Shape (event, tile, row, column), zero where there is no source pixel.

        Raises
        ------
        SourceError
            If a chunk is damaged, as far as it was looked at, or cannot be read.
        """
        step, *tile_shape = self.chunk_shape
        pictures = np.zeros((len(events), *window.shape), self.dtype.newbyteorder("="))
        places = np.array(events) % step
        for piece in tile_pieces(self.frame_shape, tuple(tile_shape), detector, window):
            chunk = self._chunk(events[0] // step, piece.tile, piece.spans, np.unique(places))
            for place, picture in zip(places, pictures, strict=True):
                piece.put(chunk[place], picture)
        return pictures

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
            pixels = found.pixels(
                n_events * n_pixels * self.dtype.itemsize,
                None if all_wanted else wanted * self.dtype.itemsize,
            )
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
