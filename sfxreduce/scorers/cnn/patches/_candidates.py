"""Compiled kernels of the search for candidates: cells, highest pixels, surroundings, patches.

A tile is copied once, in single precision, onto a sheet with a wide margin. What is masked, no
number or outside of the tile is minus infinity there, so that no kernel has to ask for edges or
masks again. What is asked of every pixel is in `_vectors`; the rest is for the few that are left.
`sfxreduce.scorers.cnn.patches.candidates` is the interface.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.scorers.cnn.patches._vectors import CELL, flag_highest, sums_up_to, whole_sums_up_to

__all__ = ["PATCH", "Rules", "candidates_of_tiles"]

PATCH = 9
"""Pixels of a side of the patch around a candidate (decision 6). No other side is on record."""

_HALF = PATCH // 2
# The shipped model has learned with these; no other values are on record.
_CLIP_SIGMA = 3.0
_CLIP_PASSES = 3
# A candidate's own pixels, this far from it, do not belong to its background.
_CORE = 2
# A patch, and a vector that starts inside the tile, must not leave the sheet.
_MARGIN = CELL
_NOTHING = np.float32(-np.inf)
_LARGEST = np.float32(np.finfo(np.float32).max)

_Floats: TypeAlias = NDArray[np.float32]
_Places: TypeAlias = NDArray[np.int64]


class Rules(NamedTuple):
    """Settings of the search, with the floor in ADU; see `CandidateFinder`."""

    least_prominence: float
    most_per_tile: int
    coarse: int
    radius: int
    floor: float
    lowest: float
    highest: float


class _Found(NamedTuple):
    """Candidates: y and x, prominence and sigma, patch."""

    places: _Places
    figures: _Floats
    patches: _Floats


class _Desk(NamedTuple):
    """Room for the work on one tile after the other.

    Parameters
    ----------
    sheet : ndarray of float32
        The tile with its margin.
    mean, sigma : ndarray of float32
        Shape (row of cells, cell).
    limit : ndarray of float32
        Shape (cell,): what is above is left out.
    sums : ndarray of float64
        Shape (4, cell): number of values, what they are counted from, their sum, their squares'.
    exact : ndarray of bool
        Shape (cell,): whether the sums are.
    flags : ndarray of uint16
        Shape (y, cell), a bit for each pixel of a row of cells.
    flagged : ndarray of int64
        Shape (cell,): cells with flags, as many as there are.
    places : ndarray of int64
        Shape (pixel, 2): y and x on the sheet of what stands out of its cell.
    rough : ndarray of float32
        Shape (pixel,): how far.
    """

    sheet: _Floats
    mean: _Floats
    sigma: _Floats
    limit: _Floats
    sums: NDArray[np.float64]
    exact: NDArray[np.bool_]
    flags: NDArray[np.uint16]
    flagged: NDArray[np.int64]
    places: _Places
    rough: _Floats


@compiled
def candidates_of_tiles(
    tiles: NDArray[np.generic], good: NDArray[np.bool_], first: int, whole: bool, rules: Rules
) -> tuple[_Places, _Places, _Floats, _Floats]:
    """Find the candidates of some tiles, each for itself, on its pixels and then on its bins.

    Parameters
    ----------
    tiles : ndarray
        Shape (tile, y, x), in ADU.
    good : ndarray of bool
        Shape (tile of the window, y, x).
    first : int
        Number of the first tile: events follow one another, each with all tiles of the window.
    whole : bool
        Whether all values are whole numbers.

    Returns
    -------
    counts : ndarray of int64
        Shape (tile, 2): candidates on the pixels of each tile, and on its bins.
    places : ndarray of int64
        Shape (candidate, 2), y and x in pixels of the tile.
    figures : ndarray of float32
        Shape (candidate, 2), prominence and sigma.
    patches : ndarray of float32
        Shape (candidate, 9, 9).
    """
    n_tiles, n_y, n_x = tiles.shape
    desk, side = _laid_out(n_y, n_x), rules.coarse
    bins = _laid_out(n_y // side, n_x // side)
    most = n_tiles * (
        min(rules.most_per_tile, len(desk.places)) + min(rules.most_per_tile, len(bins.places))
    )
    found = _Found(
        np.empty((most, 2), np.int64),
        np.empty((most, 2), np.float32),
        np.empty((most, PATCH, PATCH), np.float32),
    )
    counts = np.zeros((n_tiles, 2), np.int64)
    n = 0
    for i in range(n_tiles):
        _copy(tiles[i], good[(first + i) % len(good)], desk.sheet)
        counts[i, 0] = _search(desk, whole, rules, found, n)
        n += counts[i, 0]
        if side > 1:
            _bin(desk.sheet, side, n_y // side, n_x // side, bins.sheet)
            counts[i, 1] = _search(bins, whole, rules, found, n)
            for k in range(n, n + counts[i, 1]):
                for axis in range(2):
                    bin_ = found.places[k, axis] - _MARGIN
                    found.places[k, axis] = _MARGIN + bin_ * side + side // 2
            n += counts[i, 1]
    return counts, found.places[:n] - _MARGIN, found.figures[:n], found.patches[:n]


@compiled
def _laid_out(n_y: int, n_x: int) -> _Desk:
    """Room for tiles of a shape; the margin of the sheet is never written to again."""
    rows, columns = (n_y + CELL - 1) // CELL, (n_x + CELL - 1) // CELL
    # Of 2 x 2 pixels at most one is the highest of its neighbours.
    n_most = ((n_y + 1) // 2) * ((n_x + 1) // 2)
    height, width = rows * CELL + 2 * _MARGIN, columns * CELL + 2 * _MARGIN
    return _Desk(
        np.full((height, width), _NOTHING, np.float32),
        np.empty((rows, columns), np.float32),
        np.empty((rows, columns), np.float32),
        np.empty(columns, np.float32),
        np.empty((4, columns), np.float64),
        np.empty(columns, np.bool_),
        np.empty((CELL, columns), np.uint16),
        np.empty(columns, np.int64),
        np.empty((n_most, 2), np.int64),
        np.empty(n_most, np.float32),
    )


@compiled(borrows=True)
def _copy(tile: NDArray[np.generic], good: NDArray[np.bool_], sheet: _Floats) -> None:
    """Copy a tile into its sheet, without what is masked or no number."""
    n_y, n_x = tile.shape
    for y in range(n_y):
        row = sheet[_MARGIN + y, _MARGIN : _MARGIN + n_x]
        for x in range(n_x):
            value = np.float32(tile[y, x])
            row[x] = value if good[y, x] & (value == value) else _NOTHING


@compiled
def _bin(sheet: _Floats, side: int, n_y: int, n_x: int, out: _Floats) -> None:
    """Add up squares of pixels of a sheet; of one with bad pixels, what it would have without.

    A square that is bad for the most part stays bad.
    """
    rows = np.empty(n_x * side, np.float32)
    for y in range(n_y):
        top = _MARGIN + y * side
        totals = out[_MARGIN + y, _MARGIN : _MARGIN + n_x]
        if side == 4:  # the usual; told beforehand, the compiler finds vectors in it
            _add_squares(sheet, top, 4, rows, totals)
        else:
            _add_squares(sheet, top, side, rows, totals)
        for x in range(n_x):
            if not math.isfinite(totals[x]):
                totals[x] = _sum_of_good(sheet, top, _MARGIN + x * side, side)


@compiled(inline=True, borrows=True)
def _add_squares(sheet: _Floats, top: int, side: int, rows: _Floats, totals: _Floats) -> None:
    """Add up a row of squares, first down, then across; `rows` is room for the work."""
    for x in range(rows.size):
        total = sheet[top, _MARGIN + x]
        for v in range(1, side):
            total += sheet[top + v, _MARGIN + x]
        rows[x] = total
    for x in range(totals.size):
        total = rows[x * side]
        for u in range(1, side):
            total += rows[x * side + u]
        totals[x] = total


@compiled(borrows=True)
def _sum_of_good(sheet: _Floats, top: int, left: int, side: int) -> np.float32:
    """Sum of a square if all of it were as its good pixels are, to a whole number."""
    total, n = 0.0, 0
    for y in range(top, top + side):
        for x in range(left, left + side):
            if math.isfinite(sheet[y, x]):
                total += sheet[y, x]
                n += 1
    if 2 * n < side * side:
        return _NOTHING
    return np.float32(np.rint(total * side * side / n))


@compiled
def _search(desk: _Desk, whole: bool, rules: Rules, found: _Found, start: int) -> int:
    """Candidates of the tile on the sheet: puts them behind `start` others, returns how many."""
    sheet, mean, sigma = desk.sheet, desk.mean, desk.sigma
    n_rough = 0
    for i in range(len(mean)):
        _measure_cells(desk, i, whole, rules.floor)
        n_flagged = _flag_cells(desk, i, rules.least_prominence)
        n_rough = _stand_out(desk, i, n_flagged, rules.least_prominence, n_rough)
    order = np.argsort(-desk.rough[:n_rough], kind="mergesort")
    n = start
    # Some of the roughly prominent ones are not when looked at closely.
    for k in order[: 2 * rules.most_per_tile]:
        if n == start + rules.most_per_tile:
            break
        y, x = desk.places[k]
        cell = (y - _MARGIN) // CELL, (x - _MARGIN) // CELL
        m, s = _surroundings(sheet, y, x, mean[cell], sigma[cell], rules)
        prominence = _prominence(sheet, y, x, m, s)
        if prominence >= rules.least_prominence:
            found.places[n, 0], found.places[n, 1] = y, x
            found.figures[n, 0], found.figures[n, 1] = prominence, s
            _cut(sheet, y, x, m, s, rules, found.patches[n])
            n += 1
    return n - start


@compiled(borrows=True)
def _measure_cells(desk: _Desk, i: int, whole: bool, floor: float) -> None:
    """Mean and sigma of a row of cells by iterative clipping; infinite sigma in an empty cell.

    All cells take a pass before the next one starts: the sums of the next cell are under way while
    the last ones of a cell are still added up.
    """
    limit = desk.limit
    desk.mean[i], desk.sigma[i], limit[:] = 0.0, np.inf, _LARGEST
    for k in range(_CLIP_PASSES):
        if whole:
            _add_up_whole(desk, i)
        else:
            desk.exact[:] = False
        _add_up_others(desk, i)
        _clip(desk.mean[i], desk.sigma[i], limit, desk.sums, CELL if k == 0 else 1, floor)


@compiled(borrows=True)
def _add_up_whole(desk: _Desk, i: int) -> None:
    """Sums of a row of cells of whole numbers, and whether they are exact."""
    sheet, limit, sums, exact = desk.sheet, desk.limit, desk.sums, desk.exact
    top = _MARGIN + i * CELL
    for j in range(limit.size):
        left = _MARGIN + j * CELL
        zero = _first_value(sheet, top, left, limit[j])
        sums[1, j] = zero
        sums[0, j], sums[2, j], sums[3, j], exact[j] = whole_sums_up_to(
            sheet, top, left, zero, limit[j]
        )


@compiled(borrows=True)
def _add_up_others(desk: _Desk, i: int) -> None:
    """Sums of those of a row of cells that have no exact ones."""
    sheet, limit, sums = desk.sheet, desk.limit, desk.sums
    top = _MARGIN + i * CELL
    for j in range(limit.size):
        if not desk.exact[j]:
            left = _MARGIN + j * CELL
            zero = _first_value(sheet, top, left, limit[j])
            sums[1, j] = zero
            sums[0, j], sums[2, j], sums[3, j] = sums_up_to(
                sheet, top, top + CELL, left, left + CELL, zero, limit[j]
            )


@compiled(borrows=True)
def _clip(
    mean: _Floats,
    sigma: _Floats,
    limit: _Floats,
    sums: NDArray[np.float64],
    fewest: int,
    floor: float,
) -> None:
    """Mean, sigma and next limit of cells that have enough values; others are done with."""
    for j in range(limit.size):
        n, zero, total, squares = sums[0, j], sums[1, j], sums[2, j], sums[3, j]
        if n < fewest:
            limit[j] = _NOTHING
            continue
        off = total / n
        centre = zero + off
        spread = max(math.sqrt(max(squares / n - off * off, 0.0)), floor)
        mean[j], sigma[j] = centre, spread
        limit[j] = min(np.float32(centre + _CLIP_SIGMA * spread), np.float32(_LARGEST))


@compiled(inline=True, borrows=True)
def _first_value(sheet: _Floats, top: int, left: int, limit: np.float32) -> np.float32:
    """First value of a cell up to a limit, zero if there is none: what others are counted from.

    A value that is left out would be no place to count from: it would round the others.
    """
    zero = sheet[top, left]
    return zero if _NOTHING < zero <= limit else _look_for_value(sheet, top, left, limit)


@compiled(borrows=True)
def _look_for_value(sheet: _Floats, top: int, left: int, limit: np.float32) -> np.float32:
    for y in range(top, top + CELL):
        for x in range(left, left + CELL):
            if _NOTHING < sheet[y, x] <= limit:
                return np.float32(sheet[y, x])
    return np.float32(0)


@compiled(borrows=True)
def _flag_cells(desk: _Desk, i: int, least: float) -> int:
    """Flag the pixels of a row of cells that may stand out: all that do, and hardly any other.

    Returns in how many cells there are such pixels.

    Nine pixels stand out by ``share * sigma * sqrt(9)``. Pixels without one of their neighbours are
    flagged if they are bright enough for any number.
    """
    share, n_flagged = 0.9 * least, 0
    for j in range(desk.mean.shape[1]):
        mean, sigma = float(desk.mean[i, j]), float(desk.sigma[i, j])
        # Sums in single precision are rounded; what is flagged is looked at again.
        slack = 2e-5 * (abs(mean) + max(share, 1.0) * sigma)
        desk.flagged[n_flagged] = j
        n_flagged += flag_highest(
            desk.sheet,
            _MARGIN + i * CELL,
            _MARGIN + j * CELL,
            # The surroundings may be darker than the cell; what falls short by little gets a
            # closer look.
            _not_above(mean + 1.5 * sigma),
            np.float32(mean + share * sigma - slack),
            np.float32(9.0 * (mean - slack) + 3.0 * share * sigma),
            desk.flags[:, j],
        )
    return n_flagged


@compiled(borrows=True)
def _not_above(number: float) -> np.float32:
    """Largest number in single precision that is not above another."""
    near = np.float32(number)
    return near if near <= number else np.nextafter(near, _NOTHING)


@compiled(borrows=True)
def _stand_out(desk: _Desk, i: int, n_flagged: int, least: float, n: int) -> int:
    """Put the flagged pixels of a row of cells that stand out behind `n` others; how many now."""
    sheet, mean, sigma = desk.sheet, desk.mean[i], desk.sigma[i]
    for v in range(CELL):
        y = _MARGIN + i * CELL + v
        for j in desk.flagged[:n_flagged]:
            bits, x = desk.flags[v, j], _MARGIN + j * CELL
            while bits:
                if bits & 1 and math.isfinite(sheet[y, x]):
                    prominence = _prominence(sheet, y, x, mean[j], sigma[j])
                    if prominence >= 0.9 * least:
                        desk.places[n, 0], desk.places[n, 1] = y, x
                        desk.rough[n] = prominence
                        n += 1
                bits >>= 1
                x += 1
    return n


@compiled(borrows=True)
def _prominence(sheet: _Floats, y: int, x: int, mean: float, sigma: float) -> float:
    """How far the pixel, or the 3 x 3 around it, stands out, in units of sigma."""
    total, n = 0.0, 0
    for v in range(y - 1, y + 2):
        for u in range(x - 1, x + 2):
            if math.isfinite(sheet[v, u]):
                total += sheet[v, u] - mean
                n += 1
    return float(max((sheet[y, x] - mean) / sigma, total / (math.sqrt(n) * sigma)))


@compiled(borrows=True)
def _surroundings(
    sheet: _Floats, y: int, x: int, cell_mean: float, cell_sigma: float, rules: Rules
) -> tuple[float, float]:
    """Mean and sigma around a candidate, without its own pixels and those that stand out."""
    radius, (height, width) = rules.radius, sheet.shape
    # The last row is left alone: a vector that starts in the one before it may end there.
    top, bottom = max(y - radius, 0), min(y + radius + 1, height - 1)
    left, right = max(x - radius, 0), min(x + radius + 1, width)
    limit = _not_above(cell_mean + 4.0 * cell_sigma)
    n, total, squares = 0, 0.0, 0.0
    for box in (
        (top, min(y - _CORE, bottom), left, right),
        (max(y + _CORE + 1, top), bottom, left, right),
        (max(y - _CORE, top), min(y + _CORE + 1, bottom), left, x - _CORE),
        (max(y - _CORE, top), min(y + _CORE + 1, bottom), x + _CORE + 1, right),
    ):
        more = sums_up_to(sheet, *box, cell_mean, limit)
        n, total, squares = n + more[0], total + more[1], squares + more[2]
    if n < 2 * CELL:
        return cell_mean, cell_sigma
    variance = max(squares / n - (total / n) ** 2, 0.0)
    return cell_mean + total / n, max(math.sqrt(variance), rules.floor)


@compiled(borrows=True)
def _cut(
    sheet: _Floats, y: int, x: int, mean: float, sigma: float, rules: Rules, patch: _Floats
) -> None:
    """Fill a patch with the pixels around a candidate, in units of sigma."""
    for v in range(PATCH):
        for u in range(PATCH):
            pixel = sheet[y + v - _HALF, x + u - _HALF]
            patch[v, u] = 0.0
            if math.isfinite(pixel):
                patch[v, u] = min(max((pixel - mean) / sigma, rules.lowest), rules.highest)
