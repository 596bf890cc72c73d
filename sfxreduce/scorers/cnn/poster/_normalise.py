"""Compiled kernels of the normalisation: sums over boxes, and what stands out of them.

Down the rows, sums run on: one row enters the sums of its columns, another leaves. Along a row, a
box is the difference of two running totals. Only the first pass sums everything; a later one takes
out of its boxes the few pixels that stood out, and puts back those that no longer do.

Sums are kept in 32-bit integers where pixels are whole numbers so near to their median that no box
can overflow, as on almost every tile without a bright peak, and in double precision elsewhere:
kernels are written once and compiled for both. Running totals may overflow all the same: what is
subtracted from them is right again. `sfxreduce.scorers.cnn.poster.normalise` is the interface.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled

__all__ = ["Numbers", "normalise_tiles"]

# Up to this distance from the tile's median sums of squares stay exact enough in double precision,
# so that one sentinel value cannot spoil the rows after it.
_FARTHEST_ADU = 2**20

# The median has to be near the bulk, no more: a sample of the pixels tells it.
_SAMPLE_STEP = 24

_Sums: TypeAlias = NDArray[Any]
_Pixels: TypeAlias = NDArray[np.float32]
_Flags: TypeAlias = NDArray[np.bool_]


class Numbers(NamedTuple):
    """`Normalisation` for the compiled functions, with the floor in ADU squared."""

    radius: int
    passes: int
    fewest_pixels: np.float32
    reject_sigma: np.float32
    least_variance: np.float32
    lowest: np.float32
    highest: np.float32


class _Room(NamedTuple):
    """Room that all tiles share, for one kind of sums.

    Parameters
    ----------
    rows : ndarray
        The tile less its median, zero where a pixel does not count; shape (y, x).
    columns : ndarray
        Values and squares of the columns of a box; shape (2, x).
    totals : ndarray
        Running totals of the columns, from `radius` columns before the first to `radius` after the
        last; shape (2, 1 + radius + x + radius).
    boxes : ndarray
        Values and squares of the box around every pixel; shape (2, y, x).
    """

    rows: _Sums
    columns: _Sums
    totals: _Sums
    boxes: _Sums


class _LeftOut(NamedTuple):
    """Pixels that stand out, of one tile after the other.

    Parameters
    ----------
    flags : ndarray of bool
        Which of them are left out of the sums now; shape (y, x).
    changes : ndarray of int64
        Flat positions of those that were left out or put back, in order.
    """

    flags: _Flags
    changes: NDArray[np.int64]


def _room(shape: tuple[int, int], radius: int, kind: type) -> _Room:
    n_y, n_x = shape
    return _Room(
        rows=np.zeros((n_y, n_x), kind),
        columns=np.zeros((2, n_x), kind),
        totals=np.zeros((2, 1 + radius + n_x + radius), kind),
        boxes=np.zeros((2, n_y, n_x), kind),
    )


def normalise_tiles(tiles: NDArray[Any], goods: _Flags, numbers: Numbers, out: _Pixels) -> None:
    """Fill `out`, tile by tile.

    Parameters
    ----------
    tiles : ndarray
        Shape (event, tile, y, x), float32 or integers of up to 32 bits.
    goods : ndarray of bool
        Shape (tile, y, x); pixels that count, if they are numbers.
    out : ndarray of float32
        Shape (event, tile, y, x).
    """
    shape = (tiles.shape[2], tiles.shape[3])
    _normalise_tiles(
        tiles,
        goods,
        numbers,
        _room(shape, numbers.radius, np.int32),
        _room(shape, numbers.radius, np.float64),
        tiles.dtype.kind in "iu",
        out,
    )


@compiled
def _normalise_tiles(
    tiles: NDArray[Any],
    goods: _Flags,
    numbers: Numbers,
    whole: _Room,
    real: _Room,
    are_whole: bool,
    out: _Pixels,
) -> None:
    shape = out.shape[2:]
    counts = np.zeros(shape, np.float32)
    own = np.zeros(shape, np.float32)
    left_out = _LeftOut(
        flags=np.zeros(shape, np.bool_),
        changes=np.zeros(max(numbers.passes - 1, 1) * shape[0] * shape[1], np.int64),
    )
    box = (2 * numbers.radius + 1) ** 2
    for place in range(tiles.shape[1]):
        good = goods[place % len(goods)]
        _count(good, numbers.radius, whole, counts)
        for event in range(len(tiles)):
            tile, to = tiles[event, place], out[event, place]
            median = _median(tile, good)
            if are_whole and _fill_whole(tile, good, median, whole.rows) ** 2 * box < 2**31:
                _normalise(whole, counts, numbers, left_out, to)
            elif _fill_real(tile, good, median, real.rows):
                _count(good & np.isfinite(tile), numbers.radius, whole, own)
                _normalise(real, own, numbers, left_out, to)
            else:
                _normalise(real, counts, numbers, left_out, to)


@compiled
def _median(tile: NDArray[Any], good: _Flags) -> float:
    """Middle one of a sample of the good pixels, whole where they are; zero if there is none."""
    n_y, n_x = tile.shape
    for step in (_SAMPLE_STEP, 1):
        sample = np.empty((n_y // step + 1) * (n_x // step + 1), np.float64)
        n = 0
        for y in range(0, n_y, step):
            # The first column moves on from row to row: no column is always left out.
            for x in range((5 * (y // step)) % step, n_x, step):
                if good[y, x] and np.isfinite(tile[y, x]):
                    sample[n] = tile[y, x]
                    n += 1
        if n:
            return float(np.sort(sample[:n])[n // 2])
    return 0.0


@compiled
def _fill_whole(tile: NDArray[Any], good: _Flags, median: float, rows: _Sums) -> np.int64:
    """Subtract the median; return the largest distance from it."""
    middle, farthest = np.int64(median), np.int32(0)
    for y in range(tile.shape[0]):
        for x in range(tile.shape[1]):
            off = np.int64(tile[y, x]) - middle
            off = min(max(off, np.int64(-_FARTHEST_ADU)), np.int64(_FARTHEST_ADU))
            near = np.int32(off if good[y, x] else 0)
            rows[y, x] = near
            farthest = max(farthest, abs(near))
    return np.int64(farthest)


@compiled
def _fill_real(tile: NDArray[Any], good: _Flags, median: float, rows: _Sums) -> bool:
    """Subtract the median; return whether a good pixel is no number."""
    lost = False
    for y in range(tile.shape[0]):
        for x in range(tile.shape[1]):
            number = np.isfinite(tile[y, x])
            lost |= good[y, x] and not number
            off = np.float64(tile[y, x]) - median if good[y, x] and number else 0.0
            rows[y, x] = min(max(off, -_FARTHEST_ADU), _FARTHEST_ADU)
    return lost


@compiled
def _count(good: _Flags, radius: int, room: _Room, counts: _Pixels) -> None:
    """Count the good pixels in the box of every good pixel; zero for the others."""
    room.rows[:] = good
    _begin_boxes(room, radius)
    for y in range(good.shape[0]):
        _sum_boxes(room, radius, y)
        for x in range(good.shape[1]):
            counts[y, x] = room.boxes[0, y, x] * good[y, x]


@compiled
def _normalise(
    room: _Room, counts: _Pixels, numbers: Numbers, left_out: _LeftOut, out: _Pixels
) -> None:
    """Normalise the tile in ``room.rows``; `counts` are those of its boxes, `out` is zero."""
    _begin_boxes(room, numbers.radius)
    for y in range(len(out)):
        _sum_boxes(room, numbers.radius, y)
        # At once, while the row's sums are in the cache.
        _measure(room.boxes[0, y], room.boxes[1, y], room.rows[y], counts[y], numbers, out[y])
    done = 0
    for _ in range(1, numbers.passes):
        before = done
        done = _leave_out(room, counts, numbers, left_out, done, out)
        _measure_again(room, counts, numbers, left_out.changes[before:done], out)
    # What the tile did to the counts and flags is undone: the next one begins with them.
    for change in left_out.changes[:done]:
        y, x = divmod(change, out.shape[1])
        _count_box(counts, numbers.radius, y, x, 1 if left_out.flags[y, x] else 0)
        left_out.flags[y, x] = False
    for y in range(len(out)):
        for x in range(out.shape[1]):
            out[y, x] = min(max(out[y, x], numbers.lowest), numbers.highest)


@compiled(inline=True)
def _begin_boxes(room: _Room, radius: int) -> None:
    """Let those rows enter that lie below the first one in its boxes."""
    room.columns[:] = 0
    for y in range(min(radius, len(room.rows))):
        _enter(room.columns[0], room.columns[1], room.rows[y])


@compiled(inline=True)
def _sum_boxes(room: _Room, radius: int, y: int) -> None:
    """Sum values and squares over the boxes around the pixels of a row, after those above it."""
    rows, columns, totals = room.rows, room.columns, room.totals
    if y + radius < len(rows):
        _enter(columns[0], columns[1], rows[y + radius])
    if y > radius:
        _leave(columns[0], columns[1], rows[y - radius - 1])
    _run_totals(columns[0], columns[1], totals[0], totals[1], radius)
    for kind in range(2):
        _differ(totals[kind], 2 * radius + 1, room.boxes[kind, y])


@compiled(inline=True)
def _enter(values: _Sums, squares: _Sums, row: _Sums) -> None:
    for x in range(row.size):
        values[x] += row[x]
        squares[x] += row[x] * row[x]


@compiled(inline=True)
def _leave(values: _Sums, squares: _Sums, row: _Sums) -> None:
    for x in range(row.size):
        values[x] -= row[x]
        squares[x] -= row[x] * row[x]


@compiled(inline=True)
def _run_totals(
    values: _Sums, squares: _Sums, of_values: _Sums, of_squares: _Sums, radius: int
) -> None:
    """Add up the columns from left to right, both kinds at once: each waits for its last sum."""
    value, square = values[0] - values[0], squares[0] - squares[0]
    for x in range(values.size):
        value += values[x]
        square += squares[x]
        of_values[radius + 1 + x] = value
        of_squares[radius + 1 + x] = square
    of_values[radius + 1 + values.size :] = value
    of_squares[radius + 1 + values.size :] = square


@compiled(inline=True)
def _differ(totals: _Sums, width: int, boxes: _Sums) -> None:
    ends = totals[width:]
    for x in range(boxes.size):
        boxes[x] = ends[x] - totals[x]


@compiled
def _measure_again(
    room: _Room, counts: _Pixels, numbers: Numbers, changes: NDArray[np.int64], out: _Pixels
) -> None:
    """Compare those pixels with their boxes again whose boxes changed."""
    n_y, n_x = out.shape
    radius = numbers.radius
    if changes.size * (2 * radius + 1) ** 2 > out.size:
        _measure_rows(room, counts, numbers, 0, n_y, 0, n_x, out)
        return
    for change in changes:
        y, x = divmod(change, n_x)
        top, bottom = max(y - radius, 0), min(y + radius + 1, n_y)
        left, right = max(x - radius, 0), min(x + radius + 1, n_x)
        _measure_rows(room, counts, numbers, top, bottom, left, right, out)


@compiled(inline=True)
def _measure_rows(
    room: _Room,
    counts: _Pixels,
    numbers: Numbers,
    top: int,
    bottom: int,
    left: int,
    right: int,
    out: _Pixels,
) -> None:
    for y in range(top, bottom):
        _measure(
            room.boxes[0, y, left:right],
            room.boxes[1, y, left:right],
            room.rows[y, left:right],
            counts[y, left:right],
            numbers,
            out[y, left:right],
        )


@compiled(inline=True)
def _measure(
    values: _Sums, squares: _Sums, row: _Sums, counts: _Pixels, numbers: Numbers, out: _Pixels
) -> None:
    """Compare the pixels of a row with their boxes, where these hold enough pixels."""
    for x in range(out.size):
        n = counts[x]
        # Good to twice the digits after one step; a division in double precision costs more.
        rough = np.float64(np.float32(1) / n)
        per_pixel = rough * (2.0 - np.float64(n) * rough)
        mean = np.float64(values[x]) * per_pixel
        spread = np.float64(squares[x]) - np.float64(values[x]) * mean
        variance = max(np.float32(spread) / (n - np.float32(1)), numbers.least_variance)
        sigmas = np.float32(np.float64(row[x]) - mean) / np.float32(math.sqrt(variance))
        out[x] = sigmas if n >= numbers.fewest_pixels else out[x]


@compiled
def _leave_out(
    room: _Room,
    counts: _Pixels,
    numbers: Numbers,
    left_out: _LeftOut,
    done: int,
    out: _Pixels,
) -> int:
    """Take pixels out of their boxes that stand out now, and put back those that no longer do.

    Returns
    -------
    int
        Number of changes, with the `done` ones of passes before.
    """
    first = done == 0
    for y in range(len(out)):
        if first and not _n_standing_out(out[y], numbers.reject_sigma):
            continue
        for x in range(out.shape[1]):
            stands_out = abs(out[y, x]) > numbers.reject_sigma
            if stands_out != left_out.flags[y, x]:
                left_out.flags[y, x] = stands_out
                left_out.changes[done] = y * out.shape[1] + x
                done += 1
                sign = -1 if stands_out else 1
                _change_box(room, numbers.radius, y, x, sign)
                _count_box(counts, numbers.radius, y, x, sign)
    return done


@compiled(inline=True)
def _n_standing_out(out: _Pixels, sigmas: np.float32) -> np.int32:
    n = np.int32(0)
    for x in range(out.size):
        n += np.int32(abs(out[x]) > sigmas)
    return n


@compiled(inline=True)
def _change_box(room: _Room, radius: int, y: int, x: int, sign: int) -> None:
    """Add a pixel to the boxes that it lies in, or subtract it."""
    value = room.rows[y, x] * sign
    square = value * room.rows[y, x]
    n_y, n_x = room.rows.shape
    for j in range(max(y - radius, 0), min(y + radius + 1, n_y)):
        for i in range(max(x - radius, 0), min(x + radius + 1, n_x)):
            room.boxes[0, j, i] += value
            room.boxes[1, j, i] += square


@compiled(inline=True)
def _count_box(counts: _Pixels, radius: int, y: int, x: int, sign: int) -> None:
    """Count a pixel in the boxes that it lies in, or no longer."""
    n_y, n_x = counts.shape
    for j in range(max(y - radius, 0), min(y + radius + 1, n_y)):
        for i in range(max(x - radius, 0), min(x + radius + 1, n_x)):
            counts[j, i] += np.float32(sign)
