"""Sums over small squares of a frame, and statistics of frames: light, noise, saturation.

A run's frames are compared with the range that those of calibrated runs had.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce._numba import compiled

__all__ = [
    "CELL",
    "QUANTITIES",
    "Quantity",
    "by_cell",
    "by_pixel",
    "cell_moments",
    "cell_sums",
    "envelope_of",
    "frame_statistics",
    "stacked",
]

# Chosen, not measured, as is the slack of each quantity below.
_MARGIN = 0.5
_BRIGHT_SIGMA = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """Something that every frame has.

    Parameters
    ----------
    slack : float
        A difference of no consequence, in this unit.
    """

    name: str
    unit: str
    slack: float


QUANTITIES = (
    Quantity(name="background", unit="photons a pixel", slack=0.1),
    Quantity(name="noise", unit="photons", slack=0.25),
    Quantity(name="saturated share", unit="of the pixels", slack=1e-3),
    Quantity(name="usable share", unit="of the pixels", slack=0.1),
    Quantity(name="bright pixels", unit="in a million", slack=50.0),
)
"""What `frame_statistics` measures, in its order."""


def frame_statistics(
    frames: NDArray[np.generic],
    good: NDArray[np.bool_],
    *,
    adu_per_photon: float = math.nan,
    saturation_adu: float = math.nan,
) -> NDArray[np.float64]:
    """Measure `QUANTITIES` on frames.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    adu_per_photon : float
        Where it is not known, an ADU is taken for a photon.
    saturation_adu : float
        Full scale; nothing is saturated where it is not known.

    Returns
    -------
    ndarray of float64
        Shape (event, quantity); NaN where nothing can be told.
    """
    known = math.isfinite(adu_per_photon) and adu_per_photon > 0
    gain = adu_per_photon if known else 1.0
    rows = [_of_frame(frame, good, gain, saturation_adu) for frame in frames]
    return np.array(rows, np.float64).reshape(len(rows), len(QUANTITIES))


def envelope_of(statistics: ArrayLike, *, margin: float = _MARGIN) -> NDArray[np.float64]:
    """Range of calibrated frames, made wider: what lies a little outside is no drift.

    Parameters
    ----------
    statistics : array_like
        `frame_statistics` of calibrated runs, shape (event, quantity).
    margin : float
        Each end moves outwards by this share of itself, and by as much of the quantity's slack.

    Returns
    -------
    ndarray of float64
        Shape (quantity, 2).
    """
    measured = np.asarray(statistics, np.float64).reshape(-1, len(QUANTITIES))
    slack = np.array([quantity.slack for quantity in QUANTITIES])
    low, high = np.nanmin(measured, axis=0), np.nanmax(measured, axis=0)
    wider = [low - margin * (np.abs(low) + slack), high + margin * (np.abs(high) + slack)]
    return np.stack(wider, axis=1)


def _of_frame(
    frame: NDArray[np.generic], good: NDArray[np.bool_], gain: float, saturation_adu: float
) -> tuple[float, ...]:
    """Measure one frame: median over small squares, which peaks and rings hardly move."""
    count, total, squares, level = cell_sums(frame, good)
    usable, whole = int(count.sum()), count >= 0.9 * CELL * CELL
    if not whole.any():
        return math.nan, math.nan, math.nan, usable / max(good.size, 1), math.nan
    n = np.where(whole, count, np.nan)
    mean, spread = total / n, np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0))
    bright_adu = mean + level + _BRIGHT_SIGMA * np.maximum(spread, 0.5 * gain)
    full_adu = math.inf if math.isnan(saturation_adu) else saturation_adu
    pixels, use, limits = stacked(frame, good, bright_adu)
    n_bright, n_full = _count_above(pixels, use, limits, full_adu)
    return (
        float(np.nanmedian(mean) + level) / gain,
        float(np.nanmedian(spread)) / gain,
        n_full / usable,
        usable / good.size,
        1e6 * n_bright / float(count[whole].sum()),
    )


CELL = 16
"""Side of a cell in pixels: 256 values tell a mean to 6 % of sigma. Chosen, not measured."""

_EVERY_ROW = 37  # that a level is taken from; in no whole number of cells
_WHOLE_SHARE = 0.9  # of good pixels; chosen, not measured
_Value = TypeVar("_Value", bound=np.generic)


def by_cell(of: NDArray[_Value]) -> NDArray[_Value]:
    """Values of every cell that fits into a panel whole, as a view.

    Parameters
    ----------
    of : ndarray
        Shape (..., y, x).

    Returns
    -------
    ndarray
        Shape (..., cell row, y in the cell, cell column, x in the cell).

    Examples
    --------
    >>> by_cell(np.zeros((40, 64))).shape
    (2, 16, 4, 16)
    """
    n_y, n_x = (side // CELL for side in of.shape[-2:])
    whole = of[..., : n_y * CELL, : n_x * CELL]
    return whole.reshape(*of.shape[:-2], n_y, CELL, n_x, CELL)


def by_pixel(
    cells: NDArray[np.generic], shape: tuple[int, ...], *, outside: float
) -> NDArray[np.float32]:
    """Value of the cell of every pixel.

    Parameters
    ----------
    cells : ndarray
        Shape (..., cell row, cell column).
    shape : tuple of int
        Of a frame.
    outside : float
        Value of pixels along the edges that are in no whole cell.

    Examples
    --------
    >>> by_pixel(np.array([[7.0]]), (16, 18), outside=0)[0, 14:]
    array([7., 7., 0., 0.], dtype=float32)
    """
    grown = cells.repeat(CELL, axis=-2).repeat(CELL, axis=-1)
    pixels = np.full(shape, outside, np.float32)
    pixels[..., : grown.shape[-2], : grown.shape[-1]] = grown
    return pixels


def cell_sums(
    frame: NDArray[np.generic], good: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], float]:
    """Count, sum and sum of squares of every cell, about a level near the values.

    Parameters
    ----------
    frame : ndarray
        Shape (y, x) or (panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.

    Returns
    -------
    tuple
        Of finite good pixels: count, sum, and sum of squares in the shape of the cells, and the
        level in ADU that was subtracted before.
    """
    pixels, use = stacked(frame, good)
    # Any level near the values will do; a median of all would take longer than the sums.
    some = pixels[:, ::_EVERY_ROW][use[:, ::_EVERY_ROW]]
    some = some[np.isfinite(some)]
    level = float(np.median(some)) if some.size else 0.0
    of_panels = _sums_of_cells(pixels, use, level)
    count, total, squares = of_panels.reshape(3, *frame.shape[:-2], *of_panels.shape[-2:])
    return count, total, squares, level


def stacked(*arrays: NDArray[Any]) -> tuple[NDArray[Any], ...]:
    """Arrays of shape (y, x) or (panel, y, x) as (panel, y, x), of types that kernels know."""
    known = (
        of.astype(
            np.float32 if of.dtype.str[1:] == "f2" else of.dtype.newbyteorder("="), copy=False
        )
        for of in arrays
    )
    return tuple(of.reshape(-1, *of.shape[-2:]) for of in known)


@compiled
def _sums_of_cells(
    pixels: NDArray[np.generic], good: NDArray[np.bool_], level: float
) -> NDArray[np.float64]:
    """Count, sum and sum of squares of finite good pixels, shape (3, panel, cell row, column)."""
    n_panels, n_y, n_x = len(pixels), pixels.shape[1] // CELL, pixels.shape[2] // CELL
    sums = np.zeros((3, n_panels, n_y, n_x))
    for panel in range(n_panels):
        for y in range(n_y * CELL):
            row, use = pixels[panel, y], good[panel, y]
            for cell in range(n_x):
                count, total, squares = 0.0, 0.0, 0.0
                for x in range(cell * CELL, (cell + 1) * CELL):
                    if use[x] and math.isfinite(row[x]):
                        value = np.float64(row[x]) - level
                        count += 1.0
                        total += value
                        squares += value * value
                sums[0, panel, y // CELL, cell] += count
                sums[1, panel, y // CELL, cell] += total
                sums[2, panel, y // CELL, cell] += squares
    return sums


@compiled
def _count_above(
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    bright: NDArray[np.float64],
    full: float,
) -> tuple[int, int]:
    """Finite good pixels above the limit of their cell, and those at full scale."""
    n_bright = n_full = 0
    for panel in range(len(pixels)):
        for y in range(bright.shape[1] * CELL):
            row, use, limits = pixels[panel, y], good[panel, y], bright[panel, y // CELL]
            for cell in range(bright.shape[2]):
                limit = limits[cell]
                for x in range(cell * CELL, (cell + 1) * CELL):
                    # Without branches, so that a vector can do it.
                    value = np.float64(row[x])
                    usable = use[x] & (abs(value) < np.inf)
                    n_bright += int(usable & (value > limit))
                    n_full += int(usable & (value >= full))
    return n_bright, n_full


def cell_moments(
    frame: NDArray[np.generic], good: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of every cell; NaN where more than a few pixels are bad.

    Parameters
    ----------
    frame : ndarray
        Shape (y, x) or (panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.
    """
    count, total, squares, level = cell_sums(frame, good)
    n = np.where(count >= _WHOLE_SHARE * CELL * CELL, count, np.nan)
    mean = total / n
    return mean + level, (squares - n * mean**2) / (n - 1)
