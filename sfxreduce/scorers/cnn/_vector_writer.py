"""A writer of LLVM vector instructions for kernels that Numba does not vectorise."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils
from numba.np.arrayobj import make_array
from numpy.typing import NDArray

__all__ = ["LANES", "Packed"]

LANES = 8
"""Numbers of one vector: columns of a map, or tiles in the fully connected layers. Sixteen gained
1 % where the machine has such vectors; eight do well on older ones too."""

Floats: TypeAlias = NDArray[np.float32]


class Packed(NamedTuple):
    """All weights in the order in which the kernels read them, flat.

    Parameters
    ----------
    first, second : ndarray of float32
        Of the convolutions: (map in, x, y, map out).
    wide, narrow, last : ndarray of float32
        Of the fully connected layers: (group of `OUTPUTS_AT_ONCE` outputs, input, output).
    first_bias, second_bias, wide_bias, narrow_bias, last_bias : ndarray of float32
    """

    first: Floats
    first_bias: Floats
    second: Floats
    second_bias: Floats
    wide: Floats
    wide_bias: Floats
    narrow: Floats
    narrow_bias: Floats
    last: Floats
    last_bias: Floats


class VectorWriter:
    """Writes instructions on vectors of `LANES` numbers."""

    def __init__(self, context: Any, builder: Any) -> None:
        self.vector = ir.VectorType(ir.FloatType(), LANES)
        self._context = context
        self._builder = builder
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        # Fused where the machine has such an instruction, never a call into a library.
        self._fma = cgutils.get_or_insert_function(
            builder.module, kind, f"llvm.fmuladd.v{LANES}f32"
        )

    def data(self, array_type: Any, array: Any) -> Any:
        """Pointer to the first number of an array."""
        return make_array(array_type)(self._context, self._builder, array).data

    def at(self, pointer: Any, place: Any) -> Any:
        """Pointer to another number of the same array."""
        return self._builder.gep(pointer, [place])

    def load(self, pointer: Any) -> Any:
        """Vector that starts at any number."""
        loaded = self._builder.load(self._builder.bitcast(pointer, self.vector.as_pointer()))
        loaded.align = 4
        return loaded

    def store(self, vector: Any, pointer: Any) -> None:
        """Write a vector that starts at any number."""
        place = self._builder.bitcast(pointer, self.vector.as_pointer())
        self._builder.store(vector, place).align = 4

    def spread(self, pointer: Any) -> Any:
        """Vector of one number repeated."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = ir.Constant(ir.IntType(32), 0)
        one = self._builder.insert_element(nothing, self._builder.load(pointer), first)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), LANES), None)
        return self._builder.shuffle_vector(one, nothing, everywhere)

    def multiply_add(self, a: Any, b: Any, total: Any) -> Any:
        """Return ``a * b + total``."""
        return self._builder.call(self._fma, [a, b, total])

    def larger(self, a: Any, b: Any) -> Any:
        """Larger of two vectors, number by number."""
        return self._builder.select(self._builder.fcmp_ordered(">", a, b), a, b)

    def sums(self, n: int) -> list[Any]:
        """Variables that start at zero; the compiler keeps them in registers."""
        places = [cgutils.alloca_once(self._builder, self.vector) for _ in range(n)]
        for place in places:
            self._builder.store(ir.Constant(self.vector, None), place)
        return places
