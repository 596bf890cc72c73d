"""Where the chunks of an HDF5 dataset lie in its file, so that parts of them can be fetched."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import FileRange
from sfxreduce.io.readers.chunk_grid import ChunkGrid, FoundChunk, Unpack, unpack_blosc
from sfxreduce.io.readers.hdf5.bitshuffle import is_bitshuffle_lz4, unpack_bitshuffle_lz4
from sfxreduce.io.readers.hdf5.guard import filters_of

__all__ = ["BLOSC_FILTER", "ChunkPlaces", "chunk_places", "is_plain_number", "only_filter"]

BLOSC_FILTER = 32001
"""Number of c-blosc 1 among the registered filters of HDF5."""

MOST_CHUNKS = 1 << 20
"""Chunks of a dataset whose places are remembered; beyond, taking them down costs too much."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkPlaces:
    """Where the chunks of a dataset lie.

    Parameters
    ----------
    chunk_shape : tuple of int
        Of the dataset's axes; one frame if it is stored in one piece.
    start, n_bytes : ndarray of int64
        Shape (chunk along the events, chunk within a frame): place in the file and length. The
        place is -1 where nothing was stored.
    is_packed : ndarray of bool
        Of the same shape: whether the filter was applied.
    unpack : callable or None
        What undoes it; see `FoundChunk`.
    """

    chunk_shape: tuple[int, ...]
    start: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    is_packed: NDArray[np.bool_]
    unpack: Unpack | None = None

    def grid(self, dataset: h5py.Dataset) -> ChunkGrid:
        """Chunks of the dataset, readable while its file is open."""
        return ChunkGrid(
            frame_shape=dataset.shape[1:],
            chunk_shape=self.chunk_shape,
            dtype=dataset.dtype,
            fill=0,
            find=partial(self._find, dataset.file.id.get_vfd_handle(), Path(dataset.file.filename)),
        )

    @contextmanager
    def _find(self, file: int, path: Path, row: int, tile: int) -> Iterator[FoundChunk | None]:
        start = int(self.start[row, tile])
        if start < 0:
            raise SourceError(f"{path}: expected chunk {row}, {tile} of the frames, found none")
        n_bytes = int(self.n_bytes[row, tile])
        stored = FileRange(file=file, path=path, start=start, n_bytes=n_bytes)
        yield FoundChunk(stored=stored, unpack=self.unpack if self.is_packed[row, tile] else None)


def chunk_places(dataset: h5py.Dataset) -> ChunkPlaces | None:
    """Take down where chunks lie that are plain pixels, or packed by Blosc or bitshuffle alone.

    Parameters
    ----------
    dataset : Dataset
        Shape (event, frame axes).

    Returns
    -------
    ChunkPlaces or None
        None for any other filter or storage: HDF5 has to read them.
    """
    # Places in the file are counted from its start only where nothing stands before HDF5's data.
    if dataset.is_virtual or dataset.file.userblock_size or dataset.file.driver != "sec2":
        return None
    if not is_plain_number(dataset) or 0 in dataset.shape:
        return None
    if dataset.chunks is None:
        return _in_one_piece(dataset)
    unpack = _unpacker(dataset)
    if unpack is None and only_filter(dataset) != 0:
        return None
    grid = [-(-n // side) for n, side in zip(dataset.shape, dataset.chunks, strict=True)]
    if math.prod(grid) > MOST_CHUNKS:
        return None
    start = np.full(grid, -1, np.int64)
    n_bytes = np.zeros(grid, np.int64)
    is_packed = np.full(grid, only_filter(dataset) != 0)

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        place = tuple(a // b for a, b in zip(chunk.chunk_offset, dataset.chunks, strict=True))
        start[place], n_bytes[place] = chunk.byte_offset, chunk.size
        # A filter that could not make a chunk smaller may have been left out.
        is_packed[place] &= chunk.filter_mask == 0

    # Asking for one chunk after the other takes time quadratic in their count.
    dataset.id.chunk_iter(note)
    return ChunkPlaces(
        chunk_shape=dataset.chunks,
        start=start.reshape(grid[0], -1),
        n_bytes=n_bytes.reshape(grid[0], -1),
        is_packed=is_packed.reshape(grid[0], -1),
        unpack=unpack,
    )


def _unpacker(dataset: h5py.Dataset) -> Unpack | None:
    """What undoes the one filter of a dataset; None if it has none, or HDF5 has to."""
    if only_filter(dataset) == BLOSC_FILTER:
        return unpack_blosc
    if is_bitshuffle_lz4(dataset):
        return partial(unpack_bitshuffle_lz4, itemsize=dataset.dtype.itemsize)
    return None


def _in_one_piece(dataset: h5py.Dataset) -> ChunkPlaces | None:
    """Places of the frames of a dataset without chunks; None if its values are among metadata."""
    first = dataset.id.get_offset()
    if first is None:
        return None
    frame_bytes = math.prod(dataset.shape[1:]) * dataset.dtype.itemsize
    start = first + frame_bytes * np.arange(dataset.shape[0], dtype=np.int64)[:, np.newaxis]
    return ChunkPlaces(
        chunk_shape=(1, *dataset.shape[1:]),
        start=start,
        n_bytes=np.full_like(start, frame_bytes),
        is_packed=np.zeros(start.shape, np.bool_),
    )


def is_plain_number(dataset: h5py.Dataset) -> bool:
    """Whether stored values are NumPy's bit for bit; HDF5 has odd widths and offsets as well."""
    return bool(dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype))


def only_filter(dataset: h5py.Dataset) -> int:
    """Number of the one filter of a dataset; 0 if it has none, -1 if several."""
    filters = filters_of(dataset)
    return int(filters[0][0]) if len(filters) == 1 else -min(len(filters), 1)
