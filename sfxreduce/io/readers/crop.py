"""The pixels of a window, taken from frames that were read whole."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.run.detector import Detector
from sfxreduce.run.window import Box, Window

__all__ = ["take_window", "window_boxes"]


def take_window(
    frames: NDArray[np.generic],
    detector: Detector,
    window: Window,
    *,
    out: NDArray[np.generic] | None = None,
) -> NDArray[np.generic]:
    r"""Take a window out of source frames.

    Parameters
    ----------
    frames : ndarray
        Shape (event, \*frame).
    out : ndarray, optional
        Where the pixels go, if anywhere in particular: zero everywhere.

    Returns
    -------
    ndarray
        Shape (event, tile, row, column), zero where there is no source pixel.
    """
    shape = detector.frame_shape
    pixels = np.zeros((len(frames), *window.shape), frames.dtype) if out is None else out
    for piece in tile_pieces(shape, shape, detector, window):
        for frame, picture in zip(frames, pixels, strict=True):
            piece.put(frame, picture)
    return pixels


@lru_cache(maxsize=8)
def window_boxes(detector: Detector, window: Window) -> tuple[Box, ...]:
    """Source rectangles that hold the window's pixels; see `Window.boxes`."""
    return window.boxes(detector)
