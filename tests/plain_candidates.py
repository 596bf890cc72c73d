"""The search for candidates written plainly with NumPy: the oracle of the compiled one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sfxreduce.scorers.cnn.patches.candidates import PATCH, CandidateFinder

CELL = 16


def plain_candidates(
    tile: NDArray[np.generic], good: NDArray[np.bool_], finder: CandidateFinder, gain: float
) -> dict[str, NDArray[Any]]:
    """Columns of `Candidates`, without the tile's number, of one tile."""
    # Pixels are single precision, and so are mean and sigma of a cell.
    seen = np.where(good & ~np.isnan(tile), tile, -np.inf).astype(np.float32)
    found = on_scale(seen, 1, finder, gain)
    if finder.coarse == 1:
        return found
    bins = on_scale(binned(seen, finder.coarse), finder.coarse, finder, gain)
    return {name: np.concatenate([found[name], bins[name]]) for name in found}


def binned(seen: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Sums of squares of pixels; what is bad counts as the mean of the rest, half of it at most."""
    n_y, n_x = (length // side for length in seen.shape)
    squares = seen[: n_y * side, : n_x * side].reshape(n_y, side, n_x, side)
    total = squares[:, 0].copy()
    with np.errstate(invalid="ignore"):  # bad pixels may be endless both ways
        for v in range(1, side):
            total += squares[:, v]
        sums = total[..., 0].copy()
        for u in range(1, side):
            sums += total[..., u]
    for y, x in np.argwhere(~np.isfinite(sums)):
        own = squares[y, :, x].astype(np.float64)
        known = own[np.isfinite(own)]
        share = known.size / own.size
        sums[y, x] = np.rint(known.sum() / share) if share >= 0.5 else -np.inf
    return sums


def on_scale(
    seen: NDArray[np.float32], side: int, finder: CandidateFinder, gain: float
) -> dict[str, NDArray[Any]]:
    """Candidates of one tile on its pixels, or on squares of so many pixels a side."""
    if not seen.size:  # a tile smaller than a square
        seen = np.full((1, 1), -np.inf, np.float32)
    mean, sigma = cells(seen, finder.floor_photons * gain)
    rough = np.full(seen.shape, np.nan, np.float32)
    for y, x in np.argwhere(highest(seen) & (seen > mean + 1.5 * sigma.astype(float))):
        rough[y, x] = prominence(seen, y, x, mean[y, x], sigma[y, x])
    places = np.argwhere(rough >= 0.9 * finder.least_prominence)
    order = np.argsort(-rough[tuple(places.T)], kind="stable")
    rows = []
    for y, x in places[order][: 2 * finder.most_per_tile]:
        m, s = surroundings(seen, y, x, mean[y, x], sigma[y, x], finder, gain)
        prominent = prominence(seen, y, x, m, s)
        if prominent >= finder.least_prominence:
            patch = np.where(np.isfinite(seen), np.clip((seen - m) / s, *limits(finder)), 0)
            place = (side * y + side // 2, side * x + side // 2)
            cut = around(patch, y, x, PATCH // 2, 0.0)
            rows.append((*place, side, prominent, s / gain, cut))
    rows = rows[: finder.most_per_tile]
    names = ("y", "x", "scale", "prominence", "noise_photons", "patch")
    columns = {name: np.array([row[i] for row in rows]) for i, name in enumerate(names)}
    return columns | {"patch": columns["patch"].reshape(-1, PATCH, PATCH)}


def limits(finder: CandidateFinder) -> tuple[float, float]:
    return finder.lowest, finder.highest


def around(pixels: NDArray[Any], y: int, x: int, radius: int, other: float) -> NDArray[Any]:
    """Square around a pixel, filled up where it leaves the tile."""
    side = 2 * radius + 1
    return np.pad(pixels, radius, constant_values=other)[y : y + side, x : x + side]


def cells(seen: NDArray[np.float32], floor: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Mean and sigma of each pixel's cell by iterative clipping."""
    mean, sigma = np.zeros_like(seen), np.full_like(seen, np.inf)
    for y, x in np.ndindex(*(-(-side // CELL) for side in seen.shape)):
        cell = np.s_[y * CELL : (y + 1) * CELL, x * CELL : (x + 1) * CELL]
        values = seen[cell][np.isfinite(seen[cell])].astype(np.float64)
        if values.size < CELL:
            continue
        limit = np.float32(np.inf)
        for _ in range(3):
            low = values[values <= limit]
            if low.size:
                m, s = low.mean(), max(low.std(), floor)
                limit = np.float32(m + 3.0 * s)
        mean[cell], sigma[cell] = m, s
    return mean, sigma


def highest(seen: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels with no higher neighbour; of equals the first one counts."""
    padded = np.pad(seen, 1, constant_values=-np.inf)
    near = sliding_window_view(padded, (3, 3)).reshape(*seen.shape, 9)
    before, after = near[..., :4].max(axis=-1), near[..., 5:].max(axis=-1)
    return np.isfinite(seen) & (seen > before) & (seen >= after)


def prominence(seen: NDArray[np.float32], y: int, x: int, mean: Any, sigma: Any) -> float:
    """How far a pixel, or the 3 x 3 around it, stands out."""
    near = around(seen, y, x, 1, np.nan)
    off = near[np.isfinite(near)] - mean
    total = sum(float(value) for value in off)
    return max(float((seen[y, x] - mean) / sigma), total / (math.sqrt(off.size) * float(sigma)))


def surroundings(
    seen: NDArray[np.float32],
    y: int,
    x: int,
    cell_mean: np.float32,
    cell_sigma: np.float32,
    finder: CandidateFinder,
    gain: float,
) -> tuple[float, float]:
    """Mean and sigma around a pixel, without the 5 x 5 of its own and what stands out."""
    box = around(seen, y, x, finder.radius, np.nan).copy()
    core = slice(max(finder.radius - 2, 0), finder.radius + 3)
    box[core, core] = np.nan
    low = box[np.isfinite(box) & (box <= float(cell_mean) + 4.0 * float(cell_sigma))]
    if low.size < 2 * CELL:
        return float(cell_mean), float(cell_sigma)
    off = (low - cell_mean).astype(np.float64)
    return float(cell_mean) + off.mean(), max(float(off.std()), finder.floor_photons * gain)
