"""Frames that HDF5 packed with gzip, unpacked here: no further than a frame goes.

The filter of HDF5 makes room for as much as comes out, and only then compares it with the chunk.
Counting first what would come out takes as long as unpacking it; so it is unpacked once, within
bounds.
"""

from __future__ import annotations

import math
import zlib

import h5py
import numpy as np
from numcodecs import Shuffle
from numpy.typing import NDArray

from sfxreduce.errors import SourceError
from sfxreduce.io.readers.hdf5.chunk_index import is_plain_number
from sfxreduce.io.readers.hdf5.guard import GZIP, SHUFFLE, check_chunks, filters_of

__all__ = ["is_gzip", "read_gzip"]


def is_gzip(dataset: h5py.Dataset) -> bool:
    """Whether each chunk is one frame, packed with gzip, perhaps after its bytes were shuffled."""
    if dataset.is_virtual or dataset.chunks != (1, *dataset.shape[1:]):
        return False
    filters = filters_of(dataset)
    codes = [int(code) for code, *_ in filters]
    if codes == [SHUFFLE, GZIP]:
        return tuple(filters[0][2]) == (dataset.dtype.itemsize,) and is_plain_number(dataset)
    return codes == [GZIP] and is_plain_number(dataset)


def read_gzip(dataset: h5py.Dataset, start: int, frames: NDArray[np.generic]) -> None:
    """Read consecutive frames.

    Parameters
    ----------
    dataset : Dataset
        See `is_gzip`.
    frames : ndarray
        Shape (event, frame axes of the file): filled.

    Raises
    ------
    SourceError
        If a chunk is damaged, or is no frame.
    OSError
        If HDF5 cannot fetch it.
    """
    shuffled = dataset.id.get_create_plist().get_nfilters() == 2
    for event, frame in enumerate(frames, start=start):
        left_out, packed = dataset.id.read_direct_chunk((event, *(0 for _ in frame.shape)))
        if left_out:
            check_chunks(dataset, event, event + 1)
            frame[...] = dataset[event]
            continue
        pixels = _unpack(packed, math.prod(frame.shape) * dataset.dtype.itemsize)
        if shuffled:
            pixels = Shuffle(dataset.dtype.itemsize).decode(pixels)
        frame[...] = np.frombuffer(pixels, dataset.dtype).reshape(frame.shape)


def _unpack(packed: bytes, n_bytes: int) -> bytes:
    """Unpack a chunk of this many bytes."""
    unpacker = zlib.decompressobj()
    try:
        pixels = unpacker.decompress(packed, n_bytes + 1)
    except zlib.error as error:
        raise SourceError(f"packed frame: cannot be unpacked ({error})") from error
    if len(pixels) != n_bytes or not unpacker.eof:
        raise SourceError(f"packed frame: expected {n_bytes} bytes, found {len(pixels)} or more")
    return pixels
