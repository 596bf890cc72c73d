"""Vector instructions of the search for candidates, on the 16 pixels of a cell's row at a time.

Nearly all the time of the search goes into two questions put to every pixel: what does it add to
mean and noise around it, and is it the highest of its neighbours and bright enough to be looked at?
Whether a compiler finds vectors in loops that ask this is left to its taste, so they are spelled
out here. A sum's order is that of the lanes, whatever the width of the machine's own vectors.

All work on a sheet, a float32 array (y, x) with a margin, where minus infinity says that nothing is
there. `sfxreduce.scorers.cnn.patches._candidates` puts tiles onto it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from sfxreduce._numba import intrinsic

__all__ = ["CELL", "flag_highest", "sums_up_to", "whole_sums_up_to"]

CELL = 16
"""Pixels a side of a cell, and numbers of a vector; two or four machine vectors do well, too."""

_FLOAT, _DOUBLE, _INT = ir.FloatType(), ir.DoubleType(), ir.IntType(32)
_FLOATS, _DOUBLES = ir.VectorType(_FLOAT, CELL), ir.VectorType(_DOUBLE, CELL)
_INTS = ir.VectorType(_INT, CELL)
_NOTHING = ir.Constant(_FLOATS, [-math.inf] * CELL)
_LANE = ir.Constant(_INTS, list(range(CELL)))
# Up to here whole numbers are exact in single precision.
_WHOLE = ir.Constant(_FLOATS, [2.0**24] * CELL)
_SUMS = types.Tuple((types.int64, types.float64, types.float64))
_EXACT_SUMS = types.Tuple((types.int64, types.float64, types.float64, types.boolean))
_WORD = ir.IntType(64)
_ROWS_OF_WORD = 64 // CELL


class _Writer:
    """Writes instructions on vectors of the sheet."""

    def __init__(self, context: Any, builder: Any, sheet_type: Any, sheet: Any) -> None:
        self._builder = builder
        array = make_array(sheet_type)(context, builder, sheet)
        self._data, self._width = array.data, cgutils.unpack_tuple(builder, array.shape)[1]

    def load(self, y: Any, x: Any) -> Any:
        """Vector that starts at any pixel."""
        offset = self._builder.add(self._builder.mul(y, self._width), x)
        place = self._builder.gep(self._data, [offset])
        loaded = self._builder.load(self._builder.bitcast(place, _FLOATS.as_pointer()))
        loaded.align = 4
        return loaded

    def spread(self, number: Any) -> Any:
        """Vector of one number repeated."""
        nothing = ir.Constant(ir.VectorType(number.type, CELL), ir.Undefined)
        one = self._builder.insert_element(nothing, number, ir.Constant(_INT, 0))
        return self._builder.shuffle_vector(one, nothing, ir.Constant(_INTS, None))

    def is_there(self, pixels: Any) -> Any:
        """Which pixels are not minus infinity."""
        return self._builder.fcmp_ordered(">", pixels, _NOTHING)

    def larger(self, a: Any, b: Any) -> Any:
        """Larger of two vectors, number by number."""
        return self._builder.select(self._builder.fcmp_ordered(">", a, b), a, b)

    def bits(self, flags: Any) -> Any:
        """Flags as the bits of one number, the first pixel's the lowest."""
        return self._builder.bitcast(flags, ir.IntType(CELL))

    def number_of(self, rows: list[Any]) -> Any:
        """How many flags of rows are set, by words of bits: additions have enough to do."""
        builder, numbers = self._builder, []
        for first in range(0, len(rows), _ROWS_OF_WORD):
            parts = [builder.zext(self.bits(row), _WORD) for row in rows[first:][:_ROWS_OF_WORD]]
            shifted = [builder.shl(part, _WORD(v * CELL)) for v, part in enumerate(parts)]
            numbers.append(builder.ctpop(reduce(builder.or_, shifted)))
        return reduce(builder.add, numbers)

    def only(self, kept: Any, numbers: Any) -> Any:
        """Numbers where they are kept, and zero elsewhere."""
        return self._builder.select(kept, numbers, ir.Constant(numbers.type, None))

    def plus_square(self, squares: Any, numbers: Any) -> Any:
        """Squares of numbers added, fused where the machine can do that, never by a library."""
        kind, suffix = numbers.type, "f64" if numbers.type == _DOUBLES else "f32"
        fma = cgutils.get_or_insert_function(
            self._builder.module,
            ir.FunctionType(kind, [kind] * 3),
            f"llvm.fmuladd.v{CELL}{suffix}",
        )
        return self._builder.call(fma, [numbers, numbers, squares])

    def zeros(self, *vectors: Any) -> list[Any]:
        """Variables that start at zero; the compiler keeps them in registers."""
        return [cgutils.alloca_once_value(self._builder, ir.Constant(v, None)) for v in vectors]

    def total(self, vector: Any, add: Callable[[Any, Any], Any]) -> Any:
        """Sum of all numbers of a vector."""
        n = CELL
        while n > 1:
            n //= 2
            low, high = (
                self._builder.shuffle_vector(
                    vector, vector, ir.Constant(ir.VectorType(_INT, n), list(half))
                )
                for half in (range(n), range(n, 2 * n))
            )
            vector = add(low, high)
        return self._builder.extract_element(vector, ir.Constant(_INT, 0))


@intrinsic
def sums_up_to(
    _: Any, sheet: Any, top: Any, bottom: Any, left: Any, right: Any, zero: Any, limit: Any
) -> Any:
    """Count the values of a box up to a limit; sum them and their squares, counted from `zero`.

    The sheet has to go on for `CELL` pixels beyond the box.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        writer = _Writer(context, builder, signature.args[0], values[0])
        top, bottom, left, right = values[1:5]
        zero, limit = map(writer.spread, values[5:])
        count, total, squares = writer.zeros(_INTS, _DOUBLES, _DOUBLES)
        with cgutils.for_range_slice(builder, left, right, left.type(CELL)) as (x, _):
            n_left = writer.spread(builder.trunc(builder.sub(right, x), _INT))
            limits = builder.select(builder.icmp_signed("<", _LANE, n_left), limit, _NOTHING)
            with cgutils.for_range_slice(builder, top, bottom, top.type(1)) as (y, _):
                pixels = writer.load(y, x)
                low = builder.fcmp_ordered("<=", pixels, limits)
                kept = builder.and_(writer.is_there(pixels), low)
                off = builder.fpext(writer.only(kept, builder.fsub(pixels, zero)), _DOUBLES)
                builder.store(builder.sub(builder.load(count), builder.sext(kept, _INTS)), count)
                builder.store(builder.fadd(builder.load(total), off), total)
                builder.store(writer.plus_square(builder.load(squares), off), squares)
        sums = [writer.total(builder.load(vector), builder.fadd) for vector in (total, squares)]
        n = builder.zext(writer.total(builder.load(count), builder.add), _WORD)
        return context.make_tuple(builder, signature.return_type, [n, *sums])

    return _SUMS(sheet, top, bottom, left, right, zero, limit), write


@intrinsic
def whole_sums_up_to(_: Any, sheet: Any, top: Any, left: Any, zero: Any, limit: Any) -> Any:
    """Sum as `sums_up_to` does, but whole numbers, of a cell, and faster.

    The last number returned says whether the sums are exact: they are not if the squares are too
    large for single precision.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        writer = _Writer(context, builder, signature.args[0], values[0])
        top, left = values[1:3]
        zero, limit = map(writer.spread, values[3:])
        # Two of each: an addition has to wait for the one before.
        total, squares = ([ir.Constant(_FLOATS, None)] * 2 for _ in range(2))
        rows = []
        for v in range(CELL):
            pixels = writer.load(builder.add(top, top.type(v)), left)
            kept = builder.and_(writer.is_there(pixels), builder.fcmp_ordered("<=", pixels, limit))
            off = writer.only(kept, builder.fsub(pixels, zero))
            total[v % 2] = builder.fadd(total[v % 2], off)
            squares[v % 2] = writer.plus_square(squares[v % 2], off)
            rows.append(kept)
        sums = [builder.fadd(*total), builder.fadd(*squares)]
        small = writer.bits(builder.fcmp_ordered("<", sums[1], _WHOLE))
        exact = builder.icmp_signed("==", small, small.type(-1))
        sums = [builder.fpext(vector, _DOUBLES) for vector in sums]
        sums = [writer.total(vector, builder.fadd) for vector in sums]
        return context.make_tuple(
            builder, signature.return_type, [writer.number_of(rows), *sums, exact]
        )

    return _EXACT_SUMS(sheet, top, left, zero, limit), write


@intrinsic
def flag_highest(
    _: Any, sheet: Any, top: Any, left: Any, clear: Any, high: Any, wide: Any, flags: Any
) -> Any:
    """Flag pixels of a cell that are the highest of their neighbours and bright.

    They are above `clear`, higher than the neighbours before and not lower than those after, and
    they are at least `high` or add up with their neighbours to `wide`, or a neighbour is not there.
    `flags` gets a number for each row, a bit for each pixel; whether there is any is returned.
    """

    def write(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        writer = _Writer(context, builder, signature.args[0], values[0])
        top, left = values[1:3]
        clear, high, wide = map(writer.spread, values[3:6])
        flags = make_array(signature.args[6])(context, builder, values[6])
        rows, found = [], []
        for v in range(-1, CELL + 1):
            y = builder.add(top, top.type(v))
            row = [writer.load(y, builder.add(left, left.type(u))) for u in (-1, 0, 1)]
            rows.append((row, reduce(writer.larger, row), reduce(builder.fadd, row)))
        for v in range(CELL):
            (_, before, above), ((west, here, east), _, own), (_, after, below) = rows[v : v + 3]
            around = builder.fadd(builder.fadd(above, own), below)
            # Unordered: sums beyond the largest number are no reason not to look.
            bright = reduce(
                builder.or_,
                (
                    builder.fcmp_ordered(">=", here, high),
                    builder.fcmp_unordered(">=", around, wide),
                    builder.fcmp_ordered("==", around, _NOTHING),
                ),
            )
            flag = reduce(
                builder.and_,
                (
                    builder.fcmp_ordered(">", here, clear),
                    builder.fcmp_ordered(">", here, writer.larger(before, west)),
                    builder.fcmp_ordered(">=", here, writer.larger(after, east)),
                    bright,
                ),
            )
            place = cgutils.get_item_pointer(
                context, builder, signature.args[6], flags, [top.type(v)]
            )
            found.append(writer.bits(flag))
            builder.store(found[-1], place)
        any_ = reduce(builder.or_, found)
        return builder.icmp_unsigned("!=", any_, any_.type(0))

    return types.boolean(sheet, top, left, clear, high, wide, flags), write
