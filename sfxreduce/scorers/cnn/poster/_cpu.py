"""Compiled kernels of the fused scorer: convolution with pooling, and fully connected layers.

A convolution's maps are 25 times as large as what pooling leaves of them, so they are never
written: five of their rows are added up in registers, and only the largest of the five leaves
them. What fits into registers is not left to the compiler's taste. The two innermost blocks are
spelled out as vector instructions, a few lines of Python that write some hundred multiply-adds.
`sfxreduce.scorers.cnn.poster.cpu` is the interface.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.scorers.cnn._vector_writer import LANES, Floats, Packed, VectorWriter

__all__ = ["CHANNELS", "FEATURES", "KERNEL", "OUTPUTS_AT_ONCE", "POOL", "SIDE", "outputs_of_tiles"]

SIDE = 350
"""Pixels a side of a tile."""

KERNEL = 7
"""Pixels a side of both convolutions."""

POOL = 5
"""Pixels a side of the squares of which the largest value stays."""

CHANNELS = 4
"""Maps of either convolution."""

FEATURES = 576
"""Values left of a tile: 4 maps of 12 x 12."""

OUTPUTS_AT_ONCE = 8
"""Outputs of a fully connected layer that are summed side by side: as many multiply-adds as a core
has under way, so that none waits for the one before it."""

# Five rows of two maps are ten sums; with five rows of pixels and a weight they fill the 16
# registers of AVX2. Four maps at once gained 4 % on AVX-512, and would not fit there.
_CHANNELS_AT_ONCE = 2

_LEFT = 12  # side of a map after the second pooling
# The first leaves 68, but the second convolution and pooling never look at the last two.
_MIDDLE = _LEFT * POOL + KERNEL - 1


def _add_taps(
    writer: VectorWriter,
    corner: Any,
    rows: list[Any],
    weights: Any,
    channels: range,
    total: list[Any],
) -> list[Any]:
    """Add what one map in gives to five rows of some maps out; `corner` is its first pixel.

    Column by column, so that five rows of pixels meet a weight while all of them are in registers.
    """
    total = list(total)
    for x in range(KERNEL):
        column = writer.at(corner, ir.Constant(rows[0].type, x))
        pixels = [writer.load(writer.at(column, row)) for row in rows]
        for y, i in np.ndindex(KERNEL, len(channels)):
            tap = (x * KERNEL + y) * CHANNELS + channels[i]
            factor = writer.spread(writer.at(weights, ir.Constant(rows[0].type, tap)))
            for j in range(POOL):
                k = i * POOL + j
                total[k] = writer.multiply_add(pixels[y + j], factor, total[k])
    return total


@intrinsic
def _strip(
    _: Any, maps: Any, n: Any, side: Any, start: Any, weights: Any, out: Any, at: Any, step: Any
) -> Any:
    """Convolve `LANES` columns of five rows, from `start`, and store the largest of the rows.

    `maps` are `n` squares with `side` pixels a side; map c of the result goes to ``at + c * step``.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        writer = VectorWriter(context, builder)
        n, side, start, at, step = (values[i] for i in (1, 2, 3, 6, 7))
        maps, weights, out = (writer.data(signature.args[i], values[i]) for i in (0, 4, 5))
        rows = [builder.mul(side, side.type(y)) for y in range(KERNEL + POOL - 1)]
        for first in range(0, CHANNELS, _CHANNELS_AT_ONCE):
            channels = range(first, first + _CHANNELS_AT_ONCE)
            sums = writer.sums(_CHANNELS_AT_ONCE * POOL)
            with cgutils.for_range(builder, n) as loop:
                offset = builder.mul(loop.index, builder.mul(side, side))
                corner = writer.at(writer.at(maps, start), offset)
                taps = writer.at(
                    weights, builder.mul(loop.index, n.type(KERNEL * KERNEL * CHANNELS))
                )
                before = [builder.load(place) for place in sums]
                after = _add_taps(writer, corner, rows, taps, channels, before)
                for place, total in zip(sums, after, strict=True):
                    builder.store(total, place)
            for i, channel in enumerate(channels):
                largest = reduce(writer.larger, map(builder.load, sums[i * POOL : (i + 1) * POOL]))
                place = builder.add(at, builder.mul(step, step.type(channel)))
                writer.store(largest, writer.at(out, place))
        return context.get_dummy_value()

    return types.void(maps, n, side, start, weights, out, at, step), write


@intrinsic
def _weighted_sums(_: Any, values: Any, n: Any, weights: Any, start: Any, out: Any, at: Any) -> Any:
    """Sum `n` inputs into `OUTPUTS_AT_ONCE` outputs of `LANES` tiles, each on its own."""

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        writer = VectorWriter(context, builder)
        n, start, at = (arguments[i] for i in (1, 3, 5))
        values, weights, out = (writer.data(signature.args[i], arguments[i]) for i in (0, 2, 4))
        places = writer.sums(OUTPUTS_AT_ONCE)
        with cgutils.for_range(builder, n) as loop:
            value = writer.load(writer.at(values, builder.mul(loop.index, n.type(LANES))))
            offset = builder.mul(loop.index, n.type(OUTPUTS_AT_ONCE))
            weight = writer.at(writer.at(weights, start), offset)
            for i, place in enumerate(places):
                factor = writer.spread(writer.at(weight, n.type(i)))
                total = writer.multiply_add(value, factor, builder.load(place))
                builder.store(total, place)
        for i, place in enumerate(places):
            writer.store(builder.load(place), writer.at(out, builder.add(at, at.type(i * LANES))))
        return context.get_dummy_value()

    return types.void(values, n, weights, start, out, at), write


@compiled
def _pooled(
    maps: Floats, n_out: int, weights: Floats, bias: Floats, out: Floats, at: int, step: int
) -> None:
    """Convolution, largest of 5 x 5, ReLU; value i of the result goes to ``at + i * step``.

    Of the result's rows and columns the first `n_out` are computed; `maps` is (map, y, x).
    """
    n_maps, side = maps.shape[:2]
    width = n_out * POOL
    rows = np.empty(CHANNELS * width, np.float32)
    for y in range(n_out):
        for x in range(0, width, LANES):
            # The last strip overlaps the one before it and so stays inside the tile.
            left = min(x, width - LANES)
            corner = y * POOL * side + left
            _strip(maps, n_maps, side, corner, weights, rows, left, width)  # type: ignore[call-arg]
        for c in range(CHANNELS):
            for x in range(n_out):
                i = c * width + x * POOL
                largest = rows[i]
                for j in range(i + 1, i + POOL):
                    largest = max(largest, rows[j])
                # Bias and ReLU come last: neither changes which value is the largest.
                place = at + ((c * n_out + y) * n_out + x) * step
                out[place] = max(largest + bias[c], np.float32(0))


@compiled
def _connected(
    values: Floats, weights: Floats, bias: Floats, out: Floats, lowest: np.float32
) -> None:
    """Fully connected layer of `LANES` tiles; outputs below `lowest` are raised to it."""
    n = values.size // LANES
    for first in range(0, bias.size, OUTPUTS_AT_ONCE):
        at = first * LANES
        _weighted_sums(values, n, weights, first * n, out, at)  # type: ignore[call-arg]
    for i in range(bias.size):
        for lane in range(LANES):
            place = i * LANES + lane
            out[place] = max(out[place] + bias[i], lowest)


@compiled
def _to_numbers(
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    scale: np.float32,
    offset: np.float32,
    out: Floats,
) -> None:
    """Compute ``scale * pixel + offset``, and zero where a pixel is masked or no number."""
    for i in range(pixels.size):
        value = np.float32(pixels[i]) * scale + offset
        out[i] = value if good[i] and abs(value) < np.inf else np.float32(0)


@compiled
def outputs_of_tiles(
    pixels: NDArray[np.generic],
    good: NDArray[np.bool_],
    scale: np.float32,
    offset: np.float32,
    packed: Packed,
    out: Floats,
) -> None:
    """Fill `out` with both outputs of every tile.

    Tiles fill the lanes of the fully connected layers, whose weights are too many for the cache:
    eight tiles share one reading of them. A lane knows nothing of the others.

    Parameters
    ----------
    pixels : ndarray
        Shape (tile, y * x).
    good : ndarray of bool
        Shape (tile of the window, y * x); the tiles of one event follow one another.
    scale, offset : float32
        What the network sees is ``scale * pixel + offset``, or zero where a pixel is masked.
    out : ndarray of float32
        Shape (tile, 2).
    """
    lowest, nothing = np.float32(0), np.float32(-np.inf)
    tile = np.empty((1, SIDE, SIDE), np.float32)
    middle = np.empty((CHANNELS, _MIDDLE, _MIDDLE), np.float32)
    features = np.zeros(FEATURES * LANES, np.float32)
    wide = np.empty(packed.wide_bias.size * LANES, np.float32)
    narrow = np.empty(packed.narrow_bias.size * LANES, np.float32)
    last = np.empty(packed.last_bias.size * LANES, np.float32)
    for start in range(0, len(pixels), LANES):
        n = min(LANES, len(pixels) - start)
        for lane in range(n):
            i = start + lane
            _to_numbers(pixels[i], good[i % len(good)], scale, offset, tile.ravel())
            _pooled(tile, _MIDDLE, packed.first, packed.first_bias, middle.ravel(), 0, 1)
            _pooled(middle, _LEFT, packed.second, packed.second_bias, features, lane, LANES)
        _connected(features, packed.wide, packed.wide_bias, wide, lowest)
        _connected(wide, packed.narrow, packed.narrow_bias, narrow, lowest)
        _connected(narrow, packed.last, packed.last_bias, last, nothing)
        for lane in range(n):
            out[start + lane, 0] = last[lane]
            out[start + lane, 1] = last[LANES + lane]
