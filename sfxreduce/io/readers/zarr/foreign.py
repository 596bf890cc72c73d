"""Frames of Zarr arrays that are not of our making."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec
from zarr.core.metadata import ArrayV2Metadata

from sfxreduce.errors import SourceError
from sfxreduce.io.chunks.blosc import FileRange
from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.io.files.safe_read import open_regular
from sfxreduce.io.readers.chunk_grid import (
    ChunkGrid,
    FoundChunk,
    share_chunks,
    share_of_pieces,
    unpack_blosc,
)
from sfxreduce.io.readers.crop import take_window, window_boxes
from sfxreduce.io.store.metadata import ZARR_ERRORS, Store
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading
from sfxreduce.run.window import Box, Window

__all__ = ["foreign_share", "read_foreign", "read_foreign_parts"]


Part = tuple[slice, ...]
"""Pixels of a frame that are stored together."""


def read_foreign(
    store: Store, events: Sequence[int], window: Window | None, reading: Reading
) -> None:
    """Read events of a store that has no tiles of our kind into a reading.

    Neighbours in one chunk are read at once: reading them one by one would decode it each time.
    Chunks that are plain pixels or one Blosc buffer are read here, as far as the window needs
    them; all others go through the zarr library.

    Parameters
    ----------
    store : Store
        Opened in this process.
    reading : Reading
        Of these events, zero so far.
    """
    grid = None if window is None else _chunk_grid(store, store.folder)
    for places, wanted in share_chunks(events, int(store.array.chunks[0])):
        try:
            if not _was_stored(store, wanted[0]):
                reading.reasons[places] = Reason.DATA_HOLE
            elif window is None:
                reading.pixels[places] = _read_whole(store, wanted)
            elif grid is None:
                reading.pixels[places] = _read_window(store, wanted, window)
            else:
                pictures = reading.pixels[places[0] : places[-1] + 1]
                grid.read(wanted, store.detector, window, pictures)
        except (*ZARR_ERRORS, SourceError):
            reading.reasons[places], reading.pixels[places] = Reason.READ_ERROR, 0


def read_foreign_parts(store: Store, event: int, frame: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Read the chunks of an event, as far as they are whole; which pixels are missing.

    Parameters
    ----------
    frame : ndarray
        Shape of a frame; filled here, and with the store's fill value where pixels are missing.
    """
    lost = np.ones(frame.shape, np.bool_)
    there, absent = _stored(store, event)
    if not there:
        return lost
    sides = store.array.chunks[1:]
    grid = [math.ceil(n / side) for n, side in zip(frame.shape, sides, strict=True)]
    for place in np.ndindex(*grid):
        part = tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, sides, strict=True))
        with suppress(*ZARR_ERRORS, SourceError):
            frame[part] = np.asarray(store.array[event : event + 1, *part])[0]
            lost[part] = False
    for part in absent if store.own else ():
        lost[part] = True
    if not lost.all():  # memory that nobody has written to is not there yet
        frame[lost] = store.fill
    return lost


def _read_whole(store: Store, events: Sequence[int]) -> NDArray[np.generic]:
    """Read neighbours through the zarr library. A plain slice: its fancy ones take a hundred
    times as long where chunks lie in shards.
    """
    start = min(events)
    frames = np.asarray(store.array[start : max(events) + 1])
    chosen: NDArray[np.generic] = frames[np.array(events) - start]
    return chosen


def _read_window(store: Store, events: Sequence[int], window: Window) -> NDArray[np.generic]:
    """Read a window through the zarr library, box by box if that takes fewer chunks."""
    boxes = window_boxes(store.detector, window)
    if _share_of_boxes(store, boxes) >= 1:
        return take_window(_read_whole(store, events), store.detector, window)
    start = min(events)
    count = max(events) + 1 - start
    frames = np.zeros((count, *store.detector.frame_shape), store.dtype)
    for box in boxes:
        panel = (box.panel,) if store.detector.stacked else ()
        part = (*panel, slice(box.y0, box.y1), slice(box.x0, box.x1))
        frames[:, *part] = store.array[start : start + count, *part]
    return take_window(frames[np.array(events) - start], store.detector, window)


def foreign_share(store: Store, window: Window) -> float:
    """Share of an event that is decoded to read a window; see `sfxreduce.run.run.ReadsPartly`."""
    grid = _chunk_grid(store, store.folder)
    if grid is None:
        return min(_share_of_boxes(store, window_boxes(store.detector, window)), 1.0)
    frame, chunk = grid.frame_shape, grid.chunk_shape[1:]
    pieces = tile_pieces(frame, chunk, store.detector, window)
    return share_of_pieces(pieces, frame, chunk, in_parts=True)


def _share_of_boxes(store: Store, boxes: Sequence[Box]) -> float:
    """Share of a frame's chunks that boxes touch, one that two of them share counted twice.

    Counted are the chunks that are read, which may lie in shards.
    """
    *_, side_y, side_x = store.array.chunks
    touched = sum(
        ((box.y1 - 1) // side_y - box.y0 // side_y + 1)
        * ((box.x1 - 1) // side_x - box.x0 // side_x + 1)
        for box in boxes
    )
    shape, sides = store.array.shape[1:], store.array.chunks[1:]
    return touched / math.prod(-(-n // side) for n, side in zip(shape, sides, strict=True))


def _chunk_grid(store: Store, folder: Path) -> ChunkGrid | None:
    """Chunks whose files can be read here; None if they are packed in any other way."""
    array = store.array
    chain = _plain_or_blosc(array)
    if array.shards is not None or chain is None:
        return None
    dtype, is_packed = chain
    fill: Any = array.metadata.fill_value
    return ChunkGrid(
        frame_shape=tuple(array.shape[1:]),
        chunk_shape=tuple(array.chunks),
        dtype=dtype,
        fill=0 if fill is None else fill,
        find=partial(_open_chunk, store, folder, is_packed=is_packed),
    )


def _plain_or_blosc(array: zarr.Array[Any]) -> tuple[np.dtype[np.generic], bool] | None:
    """Dtype of stored pixels, and whether they are packed by Blosc; None for any other chain."""
    metadata, dtype = array.metadata, np.dtype(array.dtype)
    if isinstance(metadata, ArrayV2Metadata):
        known = metadata.order == "C" and not metadata.filters
        known &= metadata.compressor is None or type(metadata.compressor) is Blosc
        return (dtype, metadata.compressor is not None) if known else None
    first, *others = metadata.codecs
    if type(first) is not BytesCodec or [type(codec) for codec in others] not in ([], [BloscCodec]):
        return None
    # What is stored has the codec's byte order, whatever the array gives.
    order: Any = first.endian.value if first.endian else "native"
    return dtype.newbyteorder(order), bool(others)


@contextmanager
def _open_chunk(
    store: Store, folder: Path, row: int, tile: int, *, is_packed: bool
) -> Iterator[FoundChunk | None]:
    """Open the file of a chunk; None if there is none. See `ChunkGrid`."""
    grid = [-(-n // c) for n, c in zip(store.array.shape[1:], store.array.chunks[1:], strict=True)]
    place = (row, *(int(n) for n in np.unravel_index(tile, grid)))
    file = folder / store.array.metadata.encode_chunk_key(place)
    try:
        descriptor = open_regular(file, follow=False)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise SourceError(f"{file}: cannot be opened ({error.strerror})") from error
    try:
        n_bytes = os.fstat(descriptor).st_size
        stored = FileRange(file=descriptor, path=file, start=0, n_bytes=n_bytes)
        yield FoundChunk(stored=stored, unpack=unpack_blosc if is_packed else None)
    finally:
        os.close(descriptor)


def _was_stored(store: Store, event: int) -> bool:
    """Whether the stored objects behind an event are there.

    By the Zarr specification an absent chunk holds fill values only, and zarr leaves out such
    chunks when it writes. One of them is enough, then, to know that the event was written. In a
    store of our schema an absent one is a hole.
    """
    there, absent = _stored(store, event)
    return bool(there) and not (store.own and absent)


def _stored(store: Store, event: int) -> tuple[list[Part], list[Part]]:
    """Parts of a frame whose stored objects are there, and those whose objects are absent."""
    array = store.array
    first, *sides = array.shards or array.chunks
    grid = [math.ceil(n / side) for n, side in zip(array.shape[1:], sides, strict=True)]
    there: list[Part] = []
    absent: list[Part] = []
    for place in np.ndindex(*grid):
        key = array.metadata.encode_chunk_key((event // first, *place))
        part = tuple(slice(i * side, (i + 1) * side) for i, side in zip(place, sides, strict=True))
        (there if (store.folder / key).exists() else absent).append(part)
    return there, absent
