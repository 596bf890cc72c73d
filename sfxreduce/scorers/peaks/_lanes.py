"""Vector instructions of the peak finder's background: several rings at a time, a ring in a lane.

A sum over a ring has to wait at every pixel for the addition before. The sums of other rings do
not: side by side in the lanes of a vector they take the time of one, and each ring's values are
added in their order on the frame, so that the vectors change no bit of any sum.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.np.arrayobj import make_array

from sfxreduce._numba import intrinsic

__all__ = ["LANES", "sums_within"]

LANES = 8
"""Rings of a group: two or four machine vectors, which hide the wait for an addition."""

_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_DOUBLES = ir.VectorType(ir.DoubleType(), LANES)
_COUNTS = ir.VectorType(ir.IntType(64), LANES)


def _constant(number: float) -> Any:
    return ir.Constant(_DOUBLES, [number] * LANES)


def _load(builder: Any, vectors: Any, place: Any, align: int) -> Any:
    """Vector of an array, which need not lie at a whole number of vectors."""
    loaded = builder.load(builder.gep(vectors, [place]))
    loaded.align = align
    return loaded


@intrinsic
def sums_within(_: Any, values: Any, limits: Any, sums: Any) -> Any:
    """Sum powers of the values of each lane, counted from a number, within limits.

    Parameters
    ----------
    values : ndarray of float32
        Shape (value, lane); what is no number is in no limits.
    limits : ndarray of float64
        Shape (3, lane): what is counted from, the lowest and the highest value that counts.
    sums : ndarray of float64
        Shape (6, lane), receives number, sum, sum of squares and of cubes, lowest and highest.
    """

    def write(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = [
            make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, arguments, strict=True)
        ]
        n_values = cgutils.unpack_tuple(builder, arrays[0].shape)[0]
        values = builder.bitcast(arrays[0].data, _FLOATS.as_pointer())
        limits, sums = (builder.bitcast(of.data, _DOUBLES.as_pointer()) for of in arrays[1:])

        start, low, high = (_load(builder, limits, ir.IntType(64)(row), 8) for row in range(3))
        starts = [ir.Constant(_COUNTS, None), *[_constant(0.0)] * 3]
        starts += [_constant(math.inf), _constant(-math.inf)]
        # The compiler keeps them in registers.
        held = [cgutils.alloca_once_value(builder, vector) for vector in starts]
        with cgutils.for_range(builder, n_values) as loop:
            value = builder.fpext(_load(builder, values, loop.index, 4), _DOUBLES)
            n, *powers, lowest, highest = map(builder.load, held)
            kept = builder.and_(
                builder.fcmp_ordered("<=", low, value), builder.fcmp_ordered("<=", value, high)
            )
            off = builder.select(kept, builder.fsub(value, start), _constant(0.0))
            square = builder.fmul(off, off)
            terms = (off, square, builder.fmul(square, off))
            is_low, is_high = (
                builder.and_(kept, builder.fcmp_ordered(sign, value, end))
                for sign, end in (("<", lowest), (">", highest))
            )
            new = [
                builder.sub(n, builder.sext(kept, _COUNTS)),
                *map(builder.fadd, powers, terms),
                builder.select(is_low, value, lowest),
                builder.select(is_high, value, highest),
            ]
            for vector, place in zip(new, held, strict=True):
                builder.store(vector, place)
        found = [builder.load(place) for place in held]
        found[0] = builder.uitofp(found[0], _DOUBLES)
        for row, vector in enumerate(found):
            stored = builder.store(vector, builder.gep(sums, [ir.IntType(64)(row)]))
            stored.align = 8
        return context.get_dummy_value()

    return types.void(values, limits, sums), write
