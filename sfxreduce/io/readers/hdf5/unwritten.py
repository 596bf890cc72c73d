"""Values of an HDF5 dataset that were never written, told apart from zeros.

HDF5 reads a chunk that was never stored, and a part of a virtual dataset whose source is missing,
as fill values, without a word.
"""

from __future__ import annotations

import math

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SourceError
from sfxreduce.io.readers.hdf5.file import MOST_LINKS, Hdf5File, VirtualPart

__all__ = ["find_holes"]


def find_holes(file: Hdf5File, dataset: h5py.Dataset) -> NDArray[np.bool_]:
    """Find the positions on the first axis with values that were never written.

    Parameters
    ----------
    file : Hdf5File
        The file in which the dataset was found.

    Returns
    -------
    ndarray of bool
        Shape (position,); of length 1 for a scalar.

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    # Virtual sources are named from the file that the dataset lies in.
    owner = file.owner(dataset)
    return owner.attempt(lambda: _holes(owner, dataset, MOST_LINKS), str(dataset.name))


def _holes(file: Hdf5File, dataset: h5py.Dataset, links_left: int) -> NDArray[np.bool_]:
    """See `find_holes`."""
    n = dataset.shape[0] if dataset.ndim else 1
    if dataset.size == 0:
        return np.zeros(n, np.bool_)
    if dataset.is_virtual:
        return _virtual_holes(file, dataset, links_left)
    if dataset.chunks:
        return _chunk_holes(dataset)
    unwritten = dataset.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED
    return np.full(n, unwritten)


def _chunk_holes(dataset: h5py.Dataset) -> NDArray[np.bool_]:
    """Positions with a chunk that was never stored."""
    grid = [-(-n // step) for n, step in zip(dataset.shape, dataset.chunks, strict=True)]
    if dataset.id.get_num_chunks() == math.prod(grid):
        return np.zeros(dataset.shape[0], np.bool_)
    stored = np.zeros(grid[0], np.int64)

    def count(chunk: h5py.h5d.StoreInfo) -> None:
        stored[chunk.chunk_offset[0] // dataset.chunks[0]] += 1

    # Asking for one chunk after the other by number takes time quadratic in their count.
    dataset.id.chunk_iter(count)
    return np.repeat(stored < math.prod(grid[1:]), dataset.chunks[0])[: dataset.shape[0]]


def _virtual_holes(file: Hdf5File, dataset: h5py.Dataset, links_left: int) -> NDArray[np.bool_]:
    """Positions of a virtual dataset that its sources do not fill."""
    filled = np.zeros(dataset.shape[0], np.int64)
    for part in dataset.virtual_sources():
        rows, per_row = _selected(part.vspace, dataset.shape)
        written, values = _written(file, dataset, part, links_left)
        if values != rows.size * per_row:
            written = np.zeros(rows.shape, np.bool_)
        elif written.shape != rows.shape:
            # Rows of the source are not rows here: one hole anywhere spoils all of them.
            written = np.full(rows.shape, bool(written.all()))
        written &= rows < filled.size
        filled[rows[written]] += per_row
    missing: NDArray[np.bool_] = filled < math.prod(dataset.shape[1:])
    return missing


def _written(
    file: Hdf5File, dataset: h5py.Dataset, part: VirtualPart, links_left: int
) -> tuple[NDArray[np.bool_], int]:
    """Which rows that a part takes from its source were written, and how many values they have."""
    nothing = np.zeros(0, np.bool_), 0
    try:
        found = file.source(dataset, part, links_left)
        if found is None:
            return nothing
        owner, source = found
        holes = _holes(owner, source, links_left - 1)
    except (SourceError, RunNotFound):
        return nothing
    rows, per_row = _selected(part.src_space, source.shape)
    inside = rows < holes.size
    return inside & ~holes[np.where(inside, rows, 0)], rows.size * per_row


def _selected(space: h5py.h5s.SpaceID, shape: tuple[int, ...]) -> tuple[NDArray[np.int64], int]:
    """Rows that a selection touches, and how many values it takes from each.

    A selection that is no regular hyperslab, or has no end, touches no row that is known.
    """
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return np.arange(shape[0] if shape else 1), math.prod(shape[1:])
    if not space.is_regular_hyperslab():
        return np.zeros(0, np.int64), 0
    start, stride, count, block = space.get_regular_hyperslab()
    if max(*count, *block) >= h5py.h5s.UNLIMITED:
        return np.zeros(0, np.int64), 0
    starts = start[0] + stride[0] * np.arange(count[0], dtype=np.int64)
    rows = (starts[:, np.newaxis] + np.arange(block[0], dtype=np.int64)).ravel()
    return rows, math.prod(count[1:]) * math.prod(block[1:])
