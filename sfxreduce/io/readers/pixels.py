"""What frames may be made of, in every format."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sfxreduce.errors import SchemaError
from sfxreduce.geometry import MOST_FRAME_PIXELS

__all__ = ["check_frames"]

ITEM_SIZES = {"i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}
"""Bytes of a pixel by kind. What else NumPy has, such as 80-bit floats, differs by machine."""


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
