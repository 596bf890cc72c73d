"""What frames may be made of, in every format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.size_limits import MOST_RATIO
from sfxreduce.run.detector import MOST_FRAME_PIXELS

__all__ = ["check_extent", "check_frames"]

ITEM_SIZES = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
"""Bytes of a pixel by kind. What else NumPy has, such as 80-bit floats, differs by machine."""

MOST_UNSTORED_EVENTS = 1 << 20
"""Events of which less than a byte each may be stored; their columns take 100 MB."""

MOST_UNSTORED_BYTES = 1 << 40
"""Bytes of frames of which less than a thousandth may be stored."""


def check_extent(
    shape: Sequence[int],
    dtype: np.dtype[np.generic],
    *,
    stored: Callable[[], int],
    where: str,
) -> None:
    """Refuse a run that declares far more than is stored of it, before anything is made of it.

    Parameters
    ----------
    shape : sequence of int
        (event, frame axes).
    dtype : dtype
        Of a pixel.
    stored : callable
        Bytes that are stored; asked only of a run that declares very much.
    where : str
        Path of the frames, for the message.

    Raises
    ------
    SchemaError
        If it declares a million events and less than a byte is stored of each, or a terabyte of
        which less than a thousandth is stored.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    many = shape[0] > MOST_UNSTORED_EVENTS
    large = n_bytes > MOST_UNSTORED_BYTES
    if (many and shape[0] > stored()) or (large and n_bytes > MOST_RATIO * stored()):
        raise SchemaError(
            f"{where}: {shape[0]} events of {n_bytes} bytes are declared, but only {stored()} "
            "bytes are stored; was it written whole? Fetch it again"
        )


def check_frames(frame_shape: Sequence[int], dtype: np.dtype[np.generic], *, where: str) -> None:
    """Refuse frames that no later step can hold, before anything is made in their shape.

    Parameters
    ----------
    frame_shape : sequence of int
        Of one frame.
    dtype : dtype
        Of a pixel.
    where : str
        Path of the frames, for the message.

    Raises
    ------
    SchemaError
        If pixels are no integers or floats of a usual size, or there are none or too many.
    """
    if dtype.itemsize not in ITEM_SIZES.get(dtype.kind, ()):
        raise SchemaError(
            f"{where}: expected frames of integers of 1 to 8 bytes or floats of 2, 4 or 8, found "
            f"{dtype}; convert them first"
        )
    if not 0 < math.prod(frame_shape) <= MOST_FRAME_PIXELS:
        raise SchemaError(
            f"{where}: expected frames of 1 to {MOST_FRAME_PIXELS} pixels, found a frame of "
            f"{tuple(frame_shape)}; are the axes in order?"
        )
