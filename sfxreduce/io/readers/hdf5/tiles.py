"""Chunks of an HDF5 dataset that are tiles of a run store but for their checksum."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import h5py
import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import BloscHeader, MemoryRange, Packing
from sfxreduce.io.chunks.layout import Layout, events_per_shard
from sfxreduce.io.chunks.shards import TileCodec, with_crc
from sfxreduce.io.readers.hdf5.chunk_index import BLOSC_FILTER, is_plain_number, only_filter
from sfxreduce.io.readers.hdf5.file import HDF5_ERRORS
from sfxreduce.run.detector import Detector

__all__ = ["Hdf5Tiles", "chunk_layout"]

USUAL_LEVEL = 5
LEVEL_AT = 4
"""Place of the level among the numbers that the filter was given; it may have been left out."""

MOST_TRIED = 8
"""Events that are looked at for a whole chunk, which says how all of them are packed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hdf5Tiles:
    """The dataset of the frames while its file is open, its chunks being tiles.

    Parameters
    ----------
    layout : Layout
        See `chunk_layout`.
    """

    dataset: h5py.Dataset
    layout: Layout

    def of_event(self, event: int) -> list[bytes | None]:
        """Stored tiles of an event; None for chunks that are missing or whose header does not fit.

        Nothing is unpacked. A chunk that was damaged behind its header is not noticed here: the
        filter keeps no checksum. It gets one now, and is found out when it is unpacked, or never.
        """
        return [self._tile(event, tile) for tile in range(self.layout.tiles_per_event)]

    def _tile(self, event: int, tile: int) -> bytes | None:
        codec = TileCodec(
            dtype=self.dataset.dtype, tile=self.layout.tile, packing=self.layout.packing
        )
        n_bytes = self.layout.tile[0] * self.layout.tile[1] * codec.dtype.itemsize
        try:
            left_out, chunk = self.dataset.id.read_direct_chunk(self._offset(event, tile))
            if not left_out:
                header = BloscHeader.of(MemoryRange(data=memoryview(chunk)), n_bytes=n_bytes)
                return with_crc(chunk[: header.n_packed])
            # The filter could not make it smaller, so that it was stored as it was.
            pixels = np.frombuffer(chunk, codec.dtype).reshape(codec.tile)
        except (*HDF5_ERRORS, SourceError):
            return None
        return codec.encode(pixels)

    def _offset(self, event: int, tile: int) -> tuple[int, ...]:
        """First value of a chunk; panels have an axis of their own, or lie one below the other."""
        if self.dataset.ndim == 4:
            return event, tile, 0, 0
        return event, tile * self.layout.tile[0], 0


def chunk_layout(
    dataset: h5py.Dataset, detector: Detector, holes: NDArray[np.bool_]
) -> Layout | None:
    """Layout of a run store that takes a dataset's chunks over as they are.

    Parameters
    ----------
    dataset : Dataset
        Of the frames.
    holes : ndarray of bool
        Shape (event,): events that were not stored whole.

    Returns
    -------
    Layout or None
        None unless each chunk is one panel of one event, of numbers as Zarr stores them, and Blosc
        the only filter: with a checksum of HDF5, say, chunks have to be decoded.
    """
    panel = (1,) * (dataset.ndim - 2) + detector.panel_shape
    little = dataset.dtype == dataset.dtype.newbyteorder("<")
    if (
        dataset.is_virtual
        or dataset.chunks != panel
        or only_filter(dataset) != BLOSC_FILTER
        or not (little and is_plain_number(dataset))
    ):
        return None
    for event in np.flatnonzero(~holes)[:MOST_TRIED]:
        with suppress(*HDF5_ERRORS, SourceError):
            packing = _packing(dataset, (int(event), *(0 for _ in panel[1:])))
            if packing is None:
                return None
            return Layout(
                frame_shape=detector.frame_shape,
                tile=detector.panel_shape,
                events_per_shard=events_per_shard(detector.frame_shape, dtype=dataset.dtype),
                packing=packing,
            )
    return None


def _packing(dataset: h5py.Dataset, offset: tuple[int, ...]) -> Packing | None:
    """How a chunk was packed; None if Zarr has no name for it.

    Raises
    ------
    SourceError
        If it is no Blosc buffer of the chunk's size.
    """
    left_out, chunk = dataset.id.read_direct_chunk(offset)
    if left_out:
        raise SourceError("chunk: expected a Blosc buffer, found pixels that were not packed")
    n_bytes = math.prod(dataset.chunks) * dataset.dtype.itemsize
    header = BloscHeader.of(MemoryRange(data=memoryview(chunk)), n_bytes=n_bytes)
    _, _, numbers, _ = dataset.id.get_create_plist().get_filter(0)
    return header.packing(clevel=numbers[LEVEL_AT] if len(numbers) > LEVEL_AT else USUAL_LEVEL)
