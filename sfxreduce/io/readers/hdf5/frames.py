"""Pixels of events out of an HDF5 dataset, whole or in a window."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.io.readers.chunk_grid import ChunkGrid, share_of_pieces
from sfxreduce.io.readers.crop import take_window, window_boxes
from sfxreduce.io.readers.hdf5.file import HDF5_ERRORS
from sfxreduce.io.readers.hdf5.guard import check_chunks
from sfxreduce.io.readers.hdf5.gzip import is_gzip, read_gzip
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Box, Window

__all__ = ["Hdf5Frames", "neighbours"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hdf5Frames:
    """The dataset of the frames while its file is open.

    Parameters
    ----------
    dataset : Dataset
        Shape (event, frame axes).
    grid : ChunkGrid or None
        Its chunks, where parts of them can be fetched without HDF5.
    """

    dataset: h5py.Dataset
    detector: Detector
    grid: ChunkGrid | None

    def read_into(
        self, pixels: NDArray[np.generic], start: int, window: Window | None
    ) -> list[int]:
        """Read consecutive events that share their chunks.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, frame axes) or (event, tile, row, column): filled from `start` on.

        Returns
        -------
        list of int
            Places in `pixels` of the events that cannot be read.
        """
        try:
            self._read(pixels, start, window)
        except (*HDF5_ERRORS, SourceError):
            if len(pixels) == 1:
                return [0]
            single = [
                self.read_into(pixels[i : i + 1], start + i, window) for i in range(len(pixels))
            ]
            return [i for i, unread in enumerate(single) if unread]
        return []

    def _read(self, pixels: NDArray[np.generic], start: int, window: Window | None) -> None:
        """Read consecutive events, whole or in a window."""
        events = slice(start, start + len(pixels))
        if window is None:
            self._read_whole(pixels.reshape(len(pixels), *self.dataset.shape[1:]), events)
            return
        if self.grid is not None:
            # What cannot be read in this way is left to HDF5, which has the last word on damage.
            with suppress(SourceError):
                wanted = range(start, start + len(pixels))
                self.grid.read(wanted, self.detector, window, pixels)
                return
        frames = np.zeros((len(pixels), *self.dataset.shape[1:]), self.dataset.dtype)
        if self._read_by_box():
            check_chunks(self.dataset, events.start, events.stop)
            for box in window_boxes(self.detector, window):
                part = self._selection(box)
                frames[:, *part] = self.dataset[events, *part]
        else:
            self._read_whole(frames, events)
        shape = (len(pixels), *self.detector.frame_shape)
        take_window(frames.reshape(shape), self.detector, window, out=pixels)

    def _read_whole(self, frames: NDArray[np.generic], events: slice) -> None:
        """Read whole frames, in the shape that they have in the file."""
        if self.grid is not None:
            # As for a window: HDF5 has the last word on damage.
            with suppress(SourceError):
                if all(
                    self.grid.read_frame(event, frame)
                    for event, frame in enumerate(frames, start=events.start)
                ):
                    return
        if is_gzip(self.dataset):
            read_gzip(self.dataset, events.start, frames)
            return
        check_chunks(self.dataset, events.start, events.stop)
        self.dataset.read_direct(frames, np.s_[events])

    def decoded_share(self, window: Window) -> float:
        """See `sfxreduce.run.run.ReadsPartly`."""
        in_parts = self.grid is not None or self.dataset.chunks is None
        if not in_parts and not self._read_by_box():
            return 1.0
        frame = self.dataset.shape[1:]
        chunk = self.dataset.chunks[1:] if self.dataset.chunks else frame
        pieces = tile_pieces(frame, chunk, self.detector, window)
        return share_of_pieces(pieces, frame, chunk, in_parts=in_parts)

    def read_parts(
        self, event: int, unwritten: NDArray[np.bool_], fill: float
    ) -> tuple[NDArray[np.generic], NDArray[np.bool_]] | None:
        """Read the chunks, or panels, of an event that can be read.

        Parameters
        ----------
        unwritten : ndarray of bool
            Shape (panel,): see `sfxreduce.io.readers.hdf5.unwritten.find_missing`.
        fill : int or float
            What stands in the pixels that cannot.

        Returns
        -------
        tuple of ndarray and ndarray of bool, or None
            Pixels, and which of them are missing, in the shape of a frame; None if all are.
        """
        frame = np.full(self.dataset.shape[1:], fill, self.dataset.dtype)
        missing = np.ones(frame.shape, np.bool_)
        for panel, part in self._parts():
            if self.dataset.chunks is None and unwritten[panel]:
                continue
            with suppress(*HDF5_ERRORS, SourceError):
                if self._is_stored(event, part):
                    check_chunks(self.dataset, event, event + 1, part)
                    frame[part] = self.dataset[event, *part]
                    missing[part] = False
        if missing.all():
            return None
        shape = self.detector.frame_shape
        return frame.reshape(shape), missing.reshape(shape)

    def _parts(self) -> Iterator[tuple[int, tuple[slice, ...]]]:
        """Chunks of a frame, or else its panels, and the number of the first panel in each."""
        shape, chunks = self.dataset.shape[1:], self.dataset.chunks
        n_panels = len(self.detector.panels)
        sides = chunks[1:] if chunks else (shape[0] // n_panels, *shape[1:])
        for start in product(*(range(0, n, side) for n, side in zip(shape, sides, strict=True))):
            ends = (min(a + side, n) for a, side, n in zip(start, sides, shape, strict=True))
            yield start[0] * n_panels // shape[0], tuple(map(slice, start, ends))

    def _is_stored(self, event: int, part: Sequence[slice]) -> bool:
        if self.dataset.chunks is None:
            return True
        first = event // self.dataset.chunks[0] * self.dataset.chunks[0]
        place = (first, *(axis.start for axis in part))
        return self.dataset.id.get_chunk_info_by_coord(place).byte_offset is not None

    def _read_by_box(self) -> bool:
        """Whether a part of a frame costs less to read than all of it."""
        if self.dataset.is_virtual:
            return False
        chunks = self.dataset.chunks
        return chunks is None or math.prod(chunks[1:]) < math.prod(self.dataset.shape[1:])

    def _selection(self, box: Box) -> tuple[int | slice, ...]:
        """Where the pixels of a box lie in a frame of the file."""
        x = slice(box.x0, box.x1)
        if self.dataset.ndim == 4:
            return box.panel, slice(box.y0, box.y1), x
        top = box.panel * self.detector.panel_shape[0]
        return slice(top + box.y0, top + box.y1), x


def neighbours(
    events: Sequence[int], wanted: NDArray[np.int64], events_per_chunk: int
) -> list[NDArray[np.int64]]:
    """Split positions in `events` into runs of consecutive events that share their chunks."""
    if wanted.size == 0:
        return []
    number = np.asarray(events, np.int64)[wanted]
    apart = (np.diff(wanted) != 1) | (np.diff(number) != 1)
    apart |= np.diff(number // events_per_chunk) != 0
    return np.split(wanted, np.flatnonzero(apart) + 1)
