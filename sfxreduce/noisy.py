"""Pixels that scatter from frame to frame far more than their likes.

How far a pixel scatters is measured by the nearer of two quantiles on both sides of its median. A
Bragg peak only makes a pixel brighter, and on few frames: it moves neither the lower quantile nor
the median. What makes the whole frame brighter or darker, or a region of it, moves all pixels of a
cell and all pixels of one level, and a pixel is compared with both.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cells import by_cell, by_pixel

__all__ = ["noisy_pixels"]

_QUANTILE = 0.1
# Between the quantiles of a Gaussian, in its sigma.
_SIGMA_BETWEEN = 2.56
_TIMES_NOISIER = 4.0
_MOST_NOISY = 0.01
_BINS = 48
_PIXELS_OF_A_BIN = 2048
_ROWS_AT_ONCE = 128


def noisy_pixels(
    frames: NDArray[np.generic],
    good: NDArray[np.bool_],
    *,
    adu_per_photon: float = math.nan,
    fewest_frames: int = 20,
) -> NDArray[np.bool_]:
    """Good pixels that scatter at least four times as far as those of their level and their cell.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    adu_per_photon : float
        Half a photon is the least noise; one ADU if it is not known.
    fewest_frames : int
        With fewer no pixel is accused.

    Returns
    -------
    ndarray of bool
        Shape of a frame. None at all if more than 1 % of the pixels would be noisy. Pixels along
        the edges of a panel that are in no whole cell are not accused.

    Examples
    --------
    >>> frames = np.random.default_rng(0).normal(100, 3, (24, 64, 64))
    >>> frames[:, 20, 30] += 10 * (frames[:, 20, 30] - 100)
    >>> np.argwhere(noisy_pixels(frames, np.ones((64, 64), bool))).tolist()
    [[20, 30]]
    """
    none = np.zeros(good.shape, np.bool_)
    if len(frames) < fewest_frames or not good.any():
        return none
    level, scatter = _level_and_scatter(frames)
    use = good & np.isfinite(scatter) & np.isfinite(level)
    photon = adu_per_photon if math.isfinite(adu_per_photon) else 1.0
    expected = np.maximum(_of_cell(scatter, use), 0.5 * photon * _SIGMA_BETWEEN)
    noisy: NDArray[np.bool_] = use & (scatter > _TIMES_NOISIER * expected)
    # The few that stand out of their cell are compared with their level, which takes longer.
    places = np.flatnonzero(noisy)
    alike = _of_level(level.reshape(-1)[places], level[use], scatter[use])
    noisy.reshape(-1)[places] = scatter.reshape(-1)[places] > _TIMES_NOISIER * alike
    return noisy if np.count_nonzero(noisy) <= _MOST_NOISY * good.sum() else none


def _level_and_scatter(
    frames: NDArray[np.generic],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Median of every pixel over the frames, and twice the nearer quantile's distance from it."""
    n = len(frames)
    low, middle, high = (round(q * (n - 1)) for q in (_QUANTILE, 0.5, 1 - _QUANTILE))
    level, scatter = np.zeros((2, *frames.shape[1:]), np.float32)
    rows = frames.reshape(n, -1, frames.shape[-1])
    flat = (level.reshape(rows.shape[1:]), scatter.reshape(rows.shape[1:]))
    # All at once would take the memory of the frames once more.
    for start in range(0, rows.shape[1], _ROWS_AT_ONCE):
        here = np.s_[start : start + _ROWS_AT_ONCE]
        ordered = np.sort(rows[:, here], axis=0)
        below, median, above = (ordered[k].astype(np.float32) for k in (low, middle, high))
        flat[0][here] = median
        flat[1][here] = 2 * np.minimum(median - below, above - median)
    return level, scatter


def _of_cell(scatter: NDArray[np.float32], use: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Median scatter of every pixel's cell; infinite where no whole cell is."""
    cells = np.where(by_cell(use), by_cell(scatter), np.float32(np.inf)).swapaxes(-3, -2)
    # Pixels that do not count are the last ones, so that a cell of many has no median.
    return by_pixel(np.median(cells, axis=(-2, -1)), use.shape, outside=np.inf)


def _of_level(
    wanted: NDArray[np.float32], level: NDArray[np.float32], scatter: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Median scatter of the pixels of about the wanted levels."""
    step = max(level.size // (_BINS * _PIXELS_OF_A_BIN), 1)
    level, scatter = level[::step], scatter[::step]
    bins = np.array_split(np.argsort(level, kind="stable"), min(_BINS, level.size))
    x = np.array([np.median(level[b]) for b in bins])
    y = np.array([np.median(scatter[b]) for b in bins])
    found: NDArray[np.float64] = np.interp(wanted, x, y)
    return found
