"""Pixels that stand out, and what lies around each: the only places where a Bragg peak can be.

A frame has millions of pixels and at most some hundred peaks. Mean and noise are taken cell by
cell; a pixel is a candidate if it is the highest of its neighbours and it, or it and its
neighbours together, stand out of the cell. Around each candidate mean and noise are then taken
anew, from the pixels near by that do not stand out themselves, and a small patch is cut out in
units of that noise. It is the same picture whatever the gain, the offset and the background.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["PATCH", "CandidateFinder", "Candidates"]

PATCH = 9
"""Pixels of a side of the patch around a candidate."""

_HALF = PATCH // 2
_CELL = 16
_CLIP_SIGMA = 3.0
_CLIP_PASSES = 3
# A candidate's own pixels, this far from it, do not belong to its background.
_CORE = 2

_Floats: TypeAlias = NDArray[np.float32]
_Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Candidates:
    """Candidates of some events, ordered by event, then tile, the most prominent first.

    Parameters
    ----------
    tile : ndarray of int32
        Number of the tile: event times tiles of the window, plus the tile in the window.
    y, x : ndarray of int16
        Pixel in the tile.
    prominence : ndarray of float32
        How far it stands out, in units of sigma.
    noise_photons : ndarray of float32
        Sigma of the surroundings in photons; in ADU if the gain is not known.
    patch : ndarray of float16
        Shape (candidate, 9, 9), in units of sigma; zero where no pixel can be trusted.
    """

    tile: NDArray[np.int32]
    y: NDArray[np.int16]
    x: NDArray[np.int16]
    prominence: NDArray[np.float32]
    noise_photons: NDArray[np.float32]
    patch: NDArray[np.float16]

    def __len__(self) -> int:
        return self.tile.size


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateFinder:
    """Settings of the search, and the search.

    Parameters
    ----------
    least_prominence : float
        In units of sigma, of the pixel or of the 3 x 3 pixels around it.
    most_per_tile : int
        The most prominent ones are taken.
    radius : int
        Of the box around a candidate whose pixels are its surroundings, in pixels.
    floor_photons : float
        Least sigma in photons: single photons are no peaks.
    lowest, highest : float
        Values of a patch are cut off here, in units of sigma.
    """

    least_prominence: float = 4.0
    most_per_tile: int = 32
    radius: int = 10
    floor_photons: float = 0.5
    lowest: float = -4.0
    highest: float = 16.0

    def __call__(
        self,
        pixels: NDArray[np.generic],
        good: NDArray[np.bool_],
        *,
        adu_per_photon: float = math.nan,
    ) -> Candidates:
        """Find the candidates of some events.

        Parameters
        ----------
        pixels : ndarray
            Shape (event, tile, y, x), in ADU, of any integer or floating dtype.
        good : ndarray of bool
            Shape (tile, y, x); other pixels are neither candidates nor surroundings.
        adu_per_photon : float
            Gain in ADU; one photon counts as one ADU if it is NaN.

        Examples
        --------
        >>> flat = np.random.default_rng(0).poisson(20, (1, 1, 64, 64))
        >>> flat[0, 0, 30, 40] += 60
        >>> found = CandidateFinder()(flat, np.ones((1, 64, 64), bool), adu_per_photon=1.0)
        >>> int(found.y[0]), int(found.x[0])
        (30, 40)
        """
        gain = adu_per_photon if math.isfinite(adu_per_photon) and adu_per_photon > 0 else 1.0
        tiles = pixels.reshape(-1, *pixels.shape[-2:])
        numbers = _Numbers(
            least_prominence=self.least_prominence,
            most_per_tile=self.most_per_tile,
            radius=self.radius,
            floor=self.floor_photons * gain,
            lowest=self.lowest,
            highest=self.highest,
        )
        good = np.ascontiguousarray(good, np.bool_)
        parts = [
            _candidates_of_tile(
                np.ascontiguousarray(tile, np.float32), good[i % len(good)], numbers
            )
            for i, tile in enumerate(tiles)
        ]
        place = np.concatenate([part[0] for part in parts] or [np.zeros((0, 2), np.int64)])
        sigma = np.concatenate([part[1] for part in parts] or [np.zeros((0, 2), np.float32)])
        patch = np.concatenate(
            [part[2] for part in parts] or [np.zeros((0, PATCH, PATCH), np.float32)]
        )
        return Candidates(
            tile=np.repeat(np.arange(len(parts), dtype=np.int32), [len(p[1]) for p in parts]),
            y=place[:, 0].astype(np.int16),
            x=place[:, 1].astype(np.int16),
            prominence=sigma[:, 0],
            noise_photons=(sigma[:, 1] / gain).astype(np.float32),
            patch=patch.astype(np.float16),
        )


class _Numbers(NamedTuple):
    """`CandidateFinder` for the compiled functions, with the floor in ADU."""

    least_prominence: float
    most_per_tile: int
    radius: int
    floor: float
    lowest: float
    highest: float


@njit(nogil=True, cache=True)
def _candidates_of_tile(
    tile: _Floats, good: _Flags, numbers: _Numbers
) -> tuple[NDArray[np.int64], _Floats, _Floats]:
    """Places (y, x), (prominence, sigma) and patches of one tile."""
    mean, sigma = _cell_moments(tile, good, numbers.floor)
    place, rough = _standing_out(tile, good, mean, sigma, numbers.least_prominence)
    order = np.argsort(-rough, kind="mergesort")
    # Some of the roughly prominent ones are not when looked at closely.
    n_looked_at = min(order.size, 2 * numbers.most_per_tile)
    kept = np.empty((n_looked_at, 2), np.int64)
    figures = np.empty((n_looked_at, 2), np.float32)
    patches = np.empty((n_looked_at, PATCH, PATCH), np.float32)
    n = 0
    for i in order[:n_looked_at]:
        y, x = place[i]
        m, s = _surroundings(
            tile, good, y, x, mean[y // _CELL, x // _CELL], sigma[y // _CELL, x // _CELL], numbers
        )
        prominence = _prominence(tile, good, y, x, m, s)
        if prominence < numbers.least_prominence or n == numbers.most_per_tile:
            continue
        kept[n, 0], kept[n, 1] = y, x
        figures[n, 0], figures[n, 1] = prominence, s
        _cut(tile, good, y, x, m, s, numbers, patches[n])
        n += 1
    return kept[:n], figures[:n], patches[:n]


@njit(nogil=True, cache=True)
def _cell_moments(tile: _Floats, good: _Flags, floor: float) -> tuple[_Floats, _Floats]:
    """Mean and sigma of every cell by iterative clipping; sigma is infinite in an empty cell."""
    n_y, n_x = tile.shape
    shape = ((n_y + _CELL - 1) // _CELL, (n_x + _CELL - 1) // _CELL)
    mean = np.zeros(shape, np.float32)
    sigma = np.full(shape, np.inf, np.float32)
    values = np.empty(_CELL * _CELL, np.float32)
    for i in range(shape[0]):
        for j in range(shape[1]):
            n = 0
            for y in range(i * _CELL, min((i + 1) * _CELL, n_y)):
                for x in range(j * _CELL, min((j + 1) * _CELL, n_x)):
                    if good[y, x] and math.isfinite(tile[y, x]):
                        values[n] = tile[y, x]
                        n += 1
            if n >= _CELL:
                mean[i, j], sigma[i, j] = _clipped_moments(values[:n], floor)
    return mean, sigma


@njit(nogil=True, cache=True)
def _clipped_moments(values: _Floats, floor: float) -> tuple[float, float]:
    """Mean and sigma without the values far above the rest."""
    limit = np.float32(np.inf)
    mean, sigma = 0.0, floor
    for _ in range(_CLIP_PASSES):
        n, total, squares = 0, 0.0, 0.0
        first = float(values[0])
        for value in values:
            if value <= limit:
                off = float(value) - first
                n += 1
                total += off
                squares += off * off
        if n == 0:
            break
        mean = first + total / n
        sigma = max(math.sqrt(max(squares / n - (total / n) ** 2, 0.0)), floor)
        limit = np.float32(mean + _CLIP_SIGMA * sigma)
    return mean, sigma


@njit(nogil=True, cache=True)
def _standing_out(
    tile: _Floats, good: _Flags, mean: _Floats, sigma: _Floats, least: float
) -> tuple[NDArray[np.int64], _Floats]:
    """Pixels that are the highest of their neighbours and stand out of their cell."""
    n_y, n_x = tile.shape
    places = np.empty((n_y * n_x // 4 + 1, 2), np.int64)
    rough = np.empty(n_y * n_x // 4 + 1, np.float32)
    n = 0
    # The surroundings may be darker than the cell; what falls short by little gets a closer look.
    for y in range(n_y):
        for x in range(n_x):
            m, s = mean[y // _CELL, x // _CELL], sigma[y // _CELL, x // _CELL]
            if not good[y, x] or tile[y, x] <= m + 1.5 * s or not _is_highest(tile, good, y, x):
                continue
            prominence = _prominence(tile, good, y, x, m, s)
            if prominence >= 0.9 * least:
                places[n, 0], places[n, 1] = y, x
                rough[n] = prominence
                n += 1
    return places[:n], rough[:n]


@njit(nogil=True, cache=True)
def _is_highest(tile: _Floats, good: _Flags, y: int, x: int) -> bool:
    """Whether no neighbour is higher; of equals the first one counts."""
    here = tile[y, x]
    if not math.isfinite(here):
        return False
    for v in range(max(y - 1, 0), min(y + 2, tile.shape[0])):
        for u in range(max(x - 1, 0), min(x + 2, tile.shape[1])):
            if not good[v, u] or (v == y and u == x):
                continue
            if tile[v, u] > here or (tile[v, u] == here and (v < y or (v == y and u < x))):
                return False
    return True


@njit(nogil=True, cache=True)
def _prominence(tile: _Floats, good: _Flags, y: int, x: int, mean: float, sigma: float) -> float:
    """How far the pixel, or the 3 x 3 around it, stands out, in units of sigma."""
    total, n = 0.0, 0
    for v in range(max(y - 1, 0), min(y + 2, tile.shape[0])):
        for u in range(max(x - 1, 0), min(x + 2, tile.shape[1])):
            if good[v, u] and math.isfinite(tile[v, u]):
                total += tile[v, u] - mean
                n += 1
    return float(max((tile[y, x] - mean) / sigma, total / (math.sqrt(n) * sigma)))


@njit(nogil=True, cache=True)
def _surroundings(
    tile: _Floats,
    good: _Flags,
    y: int,
    x: int,
    cell_mean: float,
    cell_sigma: float,
    numbers: _Numbers,
) -> tuple[float, float]:
    """Mean and sigma around a candidate, without its own pixels and those that stand out."""
    n, total, squares = 0, 0.0, 0.0
    for v in range(max(y - numbers.radius, 0), min(y + numbers.radius + 1, tile.shape[0])):
        for u in range(max(x - numbers.radius, 0), min(x + numbers.radius + 1, tile.shape[1])):
            near = abs(v - y) <= _CORE and abs(u - x) <= _CORE
            off = tile[v, u] - cell_mean
            if near or not good[v, u] or not off <= 4.0 * cell_sigma:
                continue
            n += 1
            total += off
            squares += off * off
    if n < 2 * _CELL:
        return cell_mean, cell_sigma
    variance = max(squares / n - (total / n) ** 2, 0.0)
    return cell_mean + total / n, max(math.sqrt(variance), numbers.floor)


@njit(nogil=True, cache=True)
def _cut(
    tile: _Floats,
    good: _Flags,
    y: int,
    x: int,
    mean: float,
    sigma: float,
    numbers: _Numbers,
    patch: _Floats,
) -> None:
    """Fill a patch with the pixels around a candidate, in units of sigma."""
    patch[:] = 0.0
    for v in range(max(y - _HALF, 0), min(y + _HALF + 1, tile.shape[0])):
        for u in range(max(x - _HALF, 0), min(x + _HALF + 1, tile.shape[1])):
            if good[v, u] and math.isfinite(tile[v, u]):
                sigmas = (tile[v, u] - mean) / sigma
                patch[v - y + _HALF, u - x + _HALF] = min(
                    max(sigmas, numbers.lowest), numbers.highest
                )
