"""The pixels of a window, taken from frames that were read whole."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce.geometry import Box, Detector, Window

__all__ = ["take_window", "window_boxes"]


def take_window(
    frames: NDArray[np.generic], detector: Detector, window: Window
) -> NDArray[np.generic]:
    r"""Take a window out of source frames.

    Parameters
    ----------
    frames : ndarray
        Shape (event, \*frame).
    detector : Detector
    window : Window

    Returns
    -------
    ndarray
        Shape (event, tile, row, column), zero where there is no source pixel.
    """
    index = _gather(detector, window)
    pixels = frames.reshape(len(frames), -1)[:, index]
    pixels[:, index < 0] = 0
    return pixels


@lru_cache(maxsize=8)
def _gather(detector: Detector, window: Window) -> NDArray[np.int64]:
    """Keep the index of a window, which takes longer to make than a frame takes to read."""
    return window.gather(detector)


@lru_cache(maxsize=8)
def window_boxes(detector: Detector, window: Window) -> tuple[Box, ...]:
    """Source rectangles that hold the window's pixels; see `Window.boxes`."""
    return window.boxes(detector)
