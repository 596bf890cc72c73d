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

__all__ = ["find_holes", "find_missing"]

WHOLE = np.array([0, np.iinfo(np.int64).max])
"""Edges of the one part that is looked at where a position is whole or is not."""


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
    return _of_parts(file, dataset, WHOLE)[:, 0]


def find_missing(file: Hdf5File, frames: h5py.Dataset, n_panels: int) -> NDArray[np.bool_]:
    """Find the panels of frames with pixels that were never written.

    Parameters
    ----------
    frames : Dataset
        Shape (event, panel, y, x), or (event, y, x) with panels one below the other.

    Returns
    -------
    ndarray of bool
        Shape (event, panel).

    Raises
    ------
    SourceError
        If the file is damaged.
    """
    return _of_parts(file, frames, np.linspace(0, frames.shape[1], n_panels + 1).astype(np.int64))


def _of_parts(file: Hdf5File, dataset: h5py.Dataset, edges: NDArray[np.int64]) -> NDArray[np.bool_]:
    # Virtual sources are named from the file that the dataset lies in.
    owner = file.owner(dataset)
    return owner.attempt(lambda: _holes(owner, dataset, MOST_LINKS, edges), str(dataset.name))


def _holes(
    file: Hdf5File, dataset: h5py.Dataset, links_left: int, edges: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Parts of positions with values that were never written.

    Parameters
    ----------
    edges : ndarray of int64
        Where parts begin and end along the second axis, ascending.

    Returns
    -------
    ndarray of bool
        Shape (position, part).
    """
    shape = (dataset.shape[0] if dataset.ndim else 1, len(edges) - 1)
    if dataset.size == 0:
        return np.zeros(shape, np.bool_)
    if dataset.is_virtual:
        return _virtual_holes(file, dataset, links_left, edges)
    if dataset.chunks:
        return _chunk_holes(dataset, edges)
    unwritten = dataset.id.get_space_status() == h5py.h5d.SPACE_STATUS_NOT_ALLOCATED
    return np.full(shape, unwritten)


def _chunk_holes(dataset: h5py.Dataset, edges: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Parts of positions with a chunk that was never stored."""
    grid = [-(-n // step) for n, step in zip(dataset.shape, dataset.chunks, strict=True)]
    if dataset.id.get_num_chunks() == math.prod(grid):
        return np.zeros((dataset.shape[0], len(edges) - 1), np.bool_)
    step = dataset.chunks[1] if dataset.ndim > 1 else 1
    stored = np.zeros((grid[0], grid[1] if dataset.ndim > 1 else 1), np.int64)

    def count(chunk: h5py.h5d.StoreInfo) -> None:
        first = chunk.chunk_offset[0] // dataset.chunks[0]
        second = chunk.chunk_offset[1] // step if dataset.ndim > 1 else 0
        if first < len(stored):  # a program that lets others read may have added some by now
            stored[first, second] += 1

    # Asking for one chunk after the other by number takes time quadratic in their count.
    dataset.id.chunk_iter(count)
    starts = step * np.arange(stored.shape[1])[:, np.newaxis]
    touches = (starts < edges[1:]) & (starts + step > edges[:-1])
    missing = (stored < math.prod(grid[2:])).astype(np.uint8) @ touches > 0
    rows: NDArray[np.bool_] = np.repeat(missing, dataset.chunks[0], axis=0)[: dataset.shape[0]]
    return rows


def _virtual_holes(
    file: Hdf5File, dataset: h5py.Dataset, links_left: int, edges: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Parts of positions of a virtual dataset that its sources do not fill."""
    filled = np.zeros((dataset.shape[0], len(edges) - 1), np.int64)
    for part in dataset.virtual_sources():
        rows, per_row = _selected(part.vspace, dataset.shape, edges)
        written, values = _written(file, dataset, part, links_left, edges)
        if values != rows.size * int(per_row.sum()):
            written = np.zeros((rows.size, 1), np.bool_)
        elif len(written) != rows.size:
            # Rows of the source are not rows here: one hole anywhere spoils all of them.
            written = np.full((rows.size, 1), bool(written.all()))
        inside = rows < len(filled)
        filled[rows[inside]] += written[inside] * per_row
    last = dataset.shape[1] if dataset.ndim > 1 else 1
    sizes = np.diff(np.minimum(edges, last)) * math.prod(dataset.shape[2:])
    missing: NDArray[np.bool_] = filled < sizes
    return missing


def _written(
    file: Hdf5File,
    dataset: h5py.Dataset,
    part: VirtualPart,
    links_left: int,
    edges: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], int]:
    """Which rows that a part takes from its source were written, and how many values they have.

    By parts if rows of the source have the shape of those that they become.
    """
    nothing = np.zeros((0, 1), np.bool_), 0
    try:
        found = file.source(dataset, part, links_left)
        if found is None:
            return nothing
        owner, source = found
        alike = source.shape[1:] == dataset.shape[1:]
        holes = _holes(owner, source, links_left - 1, edges if alike else WHOLE)
    except (SourceError, RunNotFound):
        return nothing
    rows, per_row = _selected(part.src_space, source.shape, edges if alike else WHOLE)
    n_values = int(per_row.sum())
    if n_values != math.prod(source.shape[1:]):
        # A selection of each row: where its values come to lie is not looked into.
        holes = np.logical_or.reduce(holes, axis=1, keepdims=True)
    inside = rows < len(holes)
    there = inside[:, np.newaxis] & ~holes[np.where(inside, rows, 0)]
    return there, rows.size * n_values


def _selected(
    space: h5py.h5s.SpaceID, shape: tuple[int, ...], edges: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that a selection touches, and how many values it takes from each part of one.

    A selection that is no regular hyperslab, or has no end, touches no row that is known.
    """
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        second = np.arange(shape[1] if len(shape) > 1 else 1)
        counted = np.histogram(second, edges)[0] * math.prod(shape[2:])
        return np.arange(shape[0] if shape else 1), counted
    nothing = np.zeros(0, np.int64), np.zeros(len(edges) - 1, np.int64)
    if not space.is_regular_hyperslab():
        return nothing
    start, stride, count, block = space.get_regular_hyperslab()
    if max(*count, *block) >= h5py.h5s.UNLIMITED:
        return nothing
    axes = [_places(*axis) for axis in zip(start, stride, count, block, strict=True)]
    second = axes[1] if len(axes) > 1 else np.zeros(1, np.int64)
    counted = np.histogram(second, edges)[0] * math.prod(axis.size for axis in axes[2:])
    return axes[0], counted


def _places(start: int, stride: int, count: int, block: int) -> NDArray[np.int64]:
    """Positions on one axis of a regular hyperslab."""
    starts = start + stride * np.arange(count, dtype=np.int64)
    return (starts[:, np.newaxis] + np.arange(block, dtype=np.int64)).ravel()
