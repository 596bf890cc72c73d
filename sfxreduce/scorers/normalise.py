"""What the network sees: every pixel in units of its own surroundings' noise.

A frame's numbers change with gain, offset, photon energy, pulse energy and jet thickness; a Bragg
peak stays what it is: a few pixels that stand out of their surroundings. So each pixel becomes
``(value - mean) / sigma``, where mean and sigma belong to the square box around it, counted
without masked pixels and without pixels that themselves stand out. The variance never falls below
that of half a photon, or single photons would pass for peaks on dark frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["Normalisation", "normalise"]

# Sums of squares of a box stay exact enough in double precision up to this distance from the
# tile's median, so that one sentinel value cannot spoil the rows after it.
_FARTHEST_ADU = float(2**20)

# One good pixel in so many is enough for the median.
_SAMPLE_STEP = 8

_Floats: TypeAlias = NDArray[np.float64]
_Pixels: TypeAlias = NDArray[np.float32]
_Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """How pixels become noise units.

    Parameters
    ----------
    radius : int
        Half the side of the box in pixels; the box has ``2 * radius + 1`` pixels a side.
    passes : int
        How often mean and variance are computed; before each pass but the first, pixels that
        stand out by more than `reject_sigma` are left out of the sums.
    reject_sigma : float
        In units of sigma.
    floor_photons : float
        Least sigma, in photons. Where the gain is unknown one photon counts as one ADU.
    fewest_pixels : int
        A box with fewer pixels tells nothing: its pixel becomes zero, as a masked one does.
    lowest, highest : float
        Values are cut off here, in units of sigma.
    """

    radius: int = 10
    passes: int = 2
    reject_sigma: float = 4.0
    floor_photons: float = 0.5
    fewest_pixels: int = 25
    lowest: float = -4.0
    highest: float = 16.0


def normalise(
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    *,
    adu_per_photon: float = math.nan,
    how: Normalisation,
) -> NDArray[np.float32]:
    """Express every pixel in units of the noise around it.

    Masked and non-finite pixels never enter a sum and come out as zero: they are as bright as
    their surroundings.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, tile, y, x), in ADU, of any integer or floating dtype.
    good : ndarray of bool
        Shape (tile, y, x); false pixels do not count.
    adu_per_photon : float
        Gain in ADU; NaN if unknown.
    how : Normalisation

    Returns
    -------
    ndarray of float32
        Shape (event, tile, y, x), in units of sigma, without NaN.

    Examples
    --------
    >>> flat = np.full((1, 1, 40, 40), 7, np.int16)
    >>> flat[0, 0, 20, 20] = 1000
    >>> seen = normalise(flat, np.ones((1, 40, 40), bool), how=Normalisation())
    >>> float(seen[0, 0, 20, 20]), float(seen[0, 0, 0, 0])
    (16.0, 0.0)
    """
    gain = adu_per_photon if math.isfinite(adu_per_photon) and adu_per_photon > 0 else 1.0
    numbers = _Numbers(
        radius=how.radius,
        passes=how.passes,
        fewest_pixels=how.fewest_pixels,
        reject_sigma=how.reject_sigma,
        least_variance=(how.floor_photons * gain) ** 2,
        lowest=how.lowest,
        highest=how.highest,
    )
    tiles = np.ascontiguousarray(pixels, np.float32).reshape(-1, *pixels.shape[-2:])
    out = np.empty(tiles.shape, np.float32)
    _normalise_tiles(tiles, np.ascontiguousarray(good, np.bool_), out, numbers)
    return out.reshape(pixels.shape)


class _Numbers(NamedTuple):
    """`Normalisation` for the compiled functions, with the floor in ADU squared."""

    radius: int
    passes: int
    fewest_pixels: int
    reject_sigma: float
    least_variance: float
    lowest: float
    highest: float


@njit(nogil=True, cache=True)
def _normalise_tiles(tiles: _Pixels, goods: _Flags, out: _Pixels, numbers: _Numbers) -> None:
    """Fill `out` tile by tile."""
    shape = tiles.shape[1:]
    value = np.empty(shape, np.float64)
    use = np.empty(shape, np.bool_)
    mean = np.empty(shape, np.float64)
    variance = np.empty(shape, np.float64)
    for i in range(len(tiles)):
        seen = goods[i % len(goods)] & np.isfinite(tiles[i])
        _subtract_median(tiles[i], seen, value)
        use[:] = seen
        # No box has told anything yet; where none ever does, the pixel comes out as zero.
        mean[:] = value
        variance[:] = numbers.least_variance
        for done in range(numbers.passes):
            if done:
                _leave_out(value, seen, mean, variance, numbers.reject_sigma, use)
            _local_moments(value, use, numbers, mean, variance)
        for y in range(shape[0]):
            for x in range(shape[1]):
                sigmas = 0.0
                if seen[y, x]:
                    sigmas = (value[y, x] - mean[y, x]) / math.sqrt(variance[y, x])
                out[i, y, x] = min(max(sigmas, numbers.lowest), numbers.highest)


@njit(nogil=True, cache=True)
def _subtract_median(tile: _Pixels, seen: _Flags, value: _Floats) -> None:
    """Subtract the median of a sample of the good pixels, and bound what is left."""
    n_y, n_x = tile.shape
    sample = np.empty(n_y * (n_x // _SAMPLE_STEP + 1), np.float64)
    n = 0
    for y in range(n_y):
        # The first column moves on from row to row: no column is always left out.
        for x in range((3 * y) % _SAMPLE_STEP, n_x, _SAMPLE_STEP):
            if seen[y, x]:
                sample[n] = tile[y, x]
                n += 1
    median = np.median(sample[:n]) if n else 0.0
    for y in range(n_y):
        for x in range(n_x):
            off = tile[y, x] - median if seen[y, x] else 0.0
            value[y, x] = min(max(off, -_FARTHEST_ADU), _FARTHEST_ADU)


@njit(nogil=True, cache=True)
def _leave_out(
    value: _Floats, seen: _Flags, mean: _Floats, variance: _Floats, sigmas: float, use: _Flags
) -> None:
    """Use only the good pixels that do not stand out of their box."""
    for y in range(value.shape[0]):
        for x in range(value.shape[1]):
            off = value[y, x] - mean[y, x]
            use[y, x] = seen[y, x] and off * off <= sigmas * sigmas * variance[y, x]


@njit(nogil=True, cache=True)
def _local_moments(
    value: _Floats, use: _Flags, numbers: _Numbers, mean: _Floats, variance: _Floats
) -> None:
    """Mean and floored variance of the used pixels in every pixel's box, by running sums."""
    n_y, n_x = value.shape
    radius = numbers.radius
    columns = np.zeros((3, n_x), np.float64)
    for y in range(min(radius, n_y)):
        _add_row(columns, value[y], use[y], 1.0)
    for y in range(n_y):
        if y + radius < n_y:
            _add_row(columns, value[y + radius], use[y + radius], 1.0)
        if y > radius:
            _add_row(columns, value[y - radius - 1], use[y - radius - 1], -1.0)
        _moments_of_row(columns, numbers, mean[y], variance[y])


@njit(nogil=True, cache=True)
def _add_row(columns: _Floats, value: _Floats, use: _Flags, sign: float) -> None:
    """Add a row's counts, values and squares to the columns' sums."""
    for x in range(value.size):
        weight = sign if use[x] else 0.0
        columns[0, x] += weight
        columns[1, x] += weight * value[x]
        columns[2, x] += weight * value[x] * value[x]


@njit(nogil=True, cache=True)
def _moments_of_row(columns: _Floats, numbers: _Numbers, mean: _Floats, variance: _Floats) -> None:
    """Mean and variance along one row, where the box holds enough pixels."""
    n_x = mean.size
    radius = numbers.radius
    n = columns[0, :radius].sum()
    total = columns[1, :radius].sum()
    squares = columns[2, :radius].sum()
    for x in range(n_x):
        if x + radius < n_x:
            n += columns[0, x + radius]
            total += columns[1, x + radius]
            squares += columns[2, x + radius]
        if x > radius:
            n -= columns[0, x - radius - 1]
            total -= columns[1, x - radius - 1]
            squares -= columns[2, x - radius - 1]
        if n >= numbers.fewest_pixels:
            mean[x] = total / n
            spread = (squares - total * total / n) / (n - 1.0)
            variance[x] = max(spread, numbers.least_variance)
