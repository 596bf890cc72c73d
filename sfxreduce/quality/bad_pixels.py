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

from sfxreduce._numba import compiled
from sfxreduce.quality.frame_statistics import CELL, by_cell, by_pixel, cell_sums, stacked

__all__ = ["empty_pixels", "hot_pixels", "noisy_pixels"]

FEWEST_FRAMES_FOR_HOT = 20
"""With fewer, a crystal that is hit twice in one place would pass for a hot pixel. Chosen, not
measured."""

_CELLS_OF_AN_AREA = 64  # 128 x 128 pixels; chosen, not measured

# A feasibility study on 60 frames a run: all hot pixels found, nothing flagged in clean runs.
_HOT_SIGMA = 4.5
_HOT_SHARE = 0.2
_BRIGHT_SIGMA = 1.25  # 4.9 standard errors of the median of 24 frames with Gaussian noise
# Chosen for seams that are twice as bright, as the simulated eight-module camera has; that they
# find these and no slope is tested, no other values are on record.
_LINE_PX = 32
_LINE_BESIDE_PX = 3
_LINE_SIGMA = 8.0
# So far one frame may pull a line: a Bragg peak on it is no larger pixel. Chosen, not measured.
_PULL_SIGMA = 3.0
_MOST_HOT = 0.01  # more would be a crystal that stands still (decision 6); chosen, not measured
_MOST_IN_LINES = 0.03  # three times what seams of 256 x 256 chips take of a 512 x 1024 module


def hot_pixels(
    frames: NDArray[np.generic], good: NDArray[np.bool_], *, adu_per_photon: float = math.nan
) -> NDArray[np.bool_]:
    """Good pixels that stand out of their surroundings in frame after frame.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    adu_per_photon : float
        Half a photon is the least noise; one ADU if it is not known.

    Returns
    -------
    ndarray of bool
        Shape of a frame. None at all if there are too few frames, or if more than 1 % of the
        pixels (3 % in lines) would be hot: then it is not the detector that stands still, but the
        crystal.
    """
    none = np.zeros(good.shape, np.bool_)
    if len(frames) < FEWEST_FRAMES_FOR_HOT:
        return none
    floor = 0.5 * (adu_per_photon if math.isfinite(adu_per_photon) else 1.0)
    often = np.zeros(good.shape, np.uint16)
    noise, level = np.zeros((2, *good.shape), np.float32)
    for frame in frames:
        mean, sigma = _moments_of_pixels(frame, good, floor)
        flat = (of.reshape(-1) for of in (*stacked(frame), mean, sigma, often, noise, level))
        _take_in(*flat)
    noise /= np.float32(len(frames))
    usual, _, _ = _quantiles(frames)
    usual[np.isnan(frames).any(axis=0)] = np.nan
    excess = usual - _moments_of_pixels(usual, good, floor)[0]
    level /= np.float32(len(frames))
    single = (often > _HOT_SHARE * len(frames)) | (excess > _BRIGHT_SIGMA * noise)
    alike, error = good & ~single, noise / np.float32(math.sqrt(len(frames)))
    lines = _bright_lines(level, error, alike)
    lines |= _bright_lines(level.mT, error.mT, alike.mT).mT
    hot = none
    for bright, most in ((single & ~lines, _MOST_HOT), (lines, _MOST_IN_LINES)):
        if np.count_nonzero(good & bright) <= most * good.sum():
            hot = hot | (good & bright)
    return hot


def empty_pixels(frames: NDArray[np.generic], good: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Good pixels of wide areas that never read anything but one value.

    An assembled picture has corners and gaps that are zero on every frame and in no mask. They are
    no missing panels.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.

    Returns
    -------
    ndarray of bool
        Shape of a frame. None at all if there are too few frames to tell.
    """
    if len(frames) < FEWEST_FRAMES_FOR_HOT:
        return np.zeros(good.shape, np.bool_)
    from scipy.ndimage import binary_dilation, label  # 0.05 s, for runs whose frames are looked at

    still = np.all(frames == frames[:1], axis=0) | ~good
    n_y, n_x = (-(-side // CELL) for side in good.shape)
    padded = np.ones((n_y * CELL, n_x * CELL), np.bool_)
    padded[: good.shape[0], : good.shape[1]] = still
    cells = padded.reshape(n_y, CELL, n_x, CELL).all(axis=(1, 3))
    area, _ = label(cells)
    wide = np.flatnonzero(np.bincount(area.ravel()) >= _CELLS_OF_AN_AREA)
    # An area ends somewhere inside the cells around it.
    near = binary_dilation(np.isin(area, wide[wide > 0]), structure=np.ones((3, 3)))
    empty = near.repeat(CELL, axis=0).repeat(CELL, axis=1)
    found: NDArray[np.bool_] = empty[: good.shape[0], : good.shape[1]] & still & good
    return found


def _bright_lines(
    level: NDArray[np.float32], error: NDArray[np.float32], good: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Pixels of stretches of a row that are brighter than the rows on both sides.

    `level` is what a pixel usually reads and `error` how well that is known.
    """
    starts = np.arange(0, good.shape[-1], _LINE_PX)

    def stretches(of: NDArray[np.float32]) -> NDArray[np.float64]:
        summed: NDArray[np.float64] = np.add.reduceat(
            np.where(good, of, 0), starts, axis=-1, dtype=np.float64
        )
        return summed

    count = np.add.reduceat(good, starts, axis=-1, dtype=np.int32)
    n = np.where(count >= _LINE_PX // 2, count, np.nan)
    mean, variance = stretches(level) / n, stretches(error * error) / n**2
    bright = np.zeros(mean.shape, np.bool_)
    if mean.shape[-2] > 2 * _LINE_BESIDE_PX:
        here = np.s_[..., _LINE_BESIDE_PX:-_LINE_BESIDE_PX, :]
        before, after = np.s_[..., : -2 * _LINE_BESIDE_PX, :], np.s_[..., 2 * _LINE_BESIDE_PX :, :]
        excess = mean[here] - (mean[before] + mean[after]) / 2
        sigma = np.sqrt(variance[here] + (variance[before] + variance[after]) / 4)
        bright[here] = excess > _LINE_SIGMA * sigma
    lines: NDArray[np.bool_] = bright.repeat(_LINE_PX, axis=-1)[..., : good.shape[-1]] & good
    return lines


@compiled
def _take_in(
    pixels: NDArray[np.generic],
    mean: NDArray[np.float32],
    sigma: NDArray[np.float32],
    often: NDArray[np.uint16],
    noise: NDArray[np.float32],
    level: NDArray[np.float32],
) -> None:
    """Add a frame: pixels that stand out of their cell, noise, and the level without outliers."""
    for i in range(pixels.size):
        out = (np.float32(pixels[i]) - mean[i]) / sigma[i]
        often[i] += np.uint16(out > _HOT_SIGMA)
        noise[i] += sigma[i]
        level[i] += mean[i]
        if math.isfinite(sigma[i]) and not math.isnan(out):
            level[i] += min(max(out, -_PULL_SIGMA), _PULL_SIGMA) * sigma[i]


def _moments_of_pixels(
    frame: NDArray[np.generic], good: NDArray[np.bool_], floor: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and sigma of the cell of every pixel; sigma is infinite where nothing can be told."""
    count, total, squares, level = cell_sums(frame, good)
    n = np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / n - (total / n) ** 2, floor**2))
    spread[count < CELL] = np.inf
    mean = by_pixel(total / n + level, good.shape, outside=0)
    return mean, by_pixel(spread, good.shape, outside=np.inf)


_QUANTILE = 0.1  # a peak on fewer than a tenth of the frames moves neither quantile; chosen
_SIGMA_BETWEEN = 2.56  # between these quantiles of a Gaussian, in its sigma: 2 x 1.2816
# Chosen, not measured; that planted noise is found, and no peak, is tested.
_TIMES_NOISIER = 4.0
_MOST_NOISY = 0.01  # as `_MOST_HOT`
_BINS = 48  # levels that are told apart, at most; chosen, not measured
_PIXELS_OF_A_BIN = 2048  # a median of so many is known to 3 % of sigma
_ROWS_AT_ONCE = 128  # bounds memory, changes no result


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
    if not use.any():
        return none
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
    median, below, above = _quantiles(frames)
    scatter: NDArray[np.float32] = 2 * np.minimum(median - below, above - median)
    return median, scatter


def _quantiles(frames: NDArray[np.generic]) -> NDArray[np.float32]:
    """Median, lower and upper quantile of every pixel over the frames, shape (3, ...)."""
    n = len(frames)
    places = [round(q * (n - 1)) for q in (_QUANTILE, 1 - _QUANTILE)]
    rows = frames.reshape(n, -1, frames.shape[-1])
    found = np.zeros((3, *rows.shape[1:]), np.float32)
    # All at once would take the memory of the frames once more.
    for start in range(0, rows.shape[1], _ROWS_AT_ONCE):
        here = np.s_[:, start : start + _ROWS_AT_ONCE]
        ordered = np.sort(rows[here], axis=0)
        found[here][0] = ordered[[(n - 1) // 2, n // 2]].mean(axis=0, dtype=np.float32)
        found[here][1:] = ordered[places]
    return found.reshape(3, *frames.shape[1:])


def _of_cell(scatter: NDArray[np.float32], use: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Median scatter of every pixel's cell; infinite where no whole cell is."""
    if min(use.shape[-2:]) < CELL:
        return np.full(use.shape, np.inf, np.float32)
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
