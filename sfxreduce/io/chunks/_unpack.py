"""Kernels that unpack many stored chunks in one call; see `sfxreduce.io.chunks.decode`."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numpy.typing import NDArray

from sfxreduce._numba import compiled, intrinsic
from sfxreduce.io.chunks.blosc import HEADER_BYTES

__all__ = ["hold", "unpack_each", "unpack_parts_of_each"]

_ADDRESS, _SIZE, _STATUS = ir.IntType(8).as_pointer(), ir.IntType(64), ir.IntType(32)


@compiled
def hold(
    data: NDArray[np.uint8],
    starts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    n_bytes: int,
    itemsize: int,
) -> NDArray[np.bool_]:
    """What `PackedTiles.hold` says; no size of an item is asked for if it is 0."""
    fits = np.zeros(len(starts), np.bool_)
    for i in range(len(starts)):
        if sizes[i] >= HEADER_BYTES:
            header = data[starts[i] : starts[i] + HEADER_BYTES]
            fits[i] = (
                _number(header, 4) == n_bytes
                and HEADER_BYTES <= _number(header, 12) <= sizes[i]
                and (not itemsize or header[3] == itemsize)
            )
    return fits


@compiled
def _number(header: NDArray[np.uint8], start: int) -> int:
    """Four bytes as a number, the lowest first."""
    number = np.int64(0)
    for i in range(4):
        number |= np.int64(header[start + i]) << 8 * i
    return int(number)


@intrinsic
def _unpack(_: Any, function: Any, source: Any, target: Any, n_bytes: Any) -> Any:
    """Call ``blosc_decompress_ctx`` by its address, on one thread: bytes unpacked, or an error.

    A kernel that is given the address can be kept on disk; one that holds it cannot.
    """

    def write(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kind = ir.FunctionType(_STATUS, [_ADDRESS, _ADDRESS, _SIZE, _STATUS])
        unpack = builder.inttoptr(values[0], kind.as_pointer())
        packed, out = (builder.inttoptr(value, _ADDRESS) for value in values[1:3])
        done = builder.call(unpack, [packed, out, values[3], _STATUS(1)])
        return builder.sext(done, _SIZE)

    return types.int64(function, source, target, n_bytes), write


@compiled
def unpack_each(
    function: np.uint64,
    source: np.uint64,
    starts: NDArray[np.int64],
    out: NDArray[np.uint8],
    places: NDArray[np.int64],
    fits: NDArray[np.bool_],
) -> None:
    """Unpack what fits; what does not unpack as expected fits no longer."""
    target, n_bytes = np.uint64(out.ctypes.data), out.shape[1]
    for i in range(len(starts)):
        if fits[i]:
            there = target + np.uint64(places[i] * n_bytes)
            fits[i] = _unpack(function, source + np.uint64(starts[i]), there, n_bytes) == n_bytes


@intrinsic
def _unpack_part(_: Any, function: Any, source: Any, first: Any, n_items: Any, target: Any) -> Any:
    """Call ``blosc_getitem`` by its address: bytes unpacked, or an error; see `_unpack`."""

    def write(_: Any, builder: Any, __: Any, values: Any) -> Any:
        kind = ir.FunctionType(_STATUS, [_ADDRESS, _STATUS, _STATUS, _ADDRESS])
        unpack = builder.inttoptr(values[0], kind.as_pointer())
        packed, out = (builder.inttoptr(values[place], _ADDRESS) for place in (1, 4))
        start, number = (builder.trunc(values[place], _STATUS) for place in (2, 3))
        return builder.sext(builder.call(unpack, [packed, start, number, out]), _SIZE)

    return types.int64(function, source, first, n_items, target), write


@compiled
def unpack_parts_of_each(
    function: np.uint64,
    source: np.uint64,
    starts: NDArray[np.int64],
    out: NDArray[np.uint8],
    parts: NDArray[np.int64],
    itemsize: int,
    fits: NDArray[np.bool_],
) -> None:
    """Unpack parts of what fits, see `unpack_each`."""
    there = np.uint64(out.ctypes.data)
    for i in range(len(starts)):
        for k in range(len(parts)):
            first, n_items = parts[k, 0], parts[k, 1] - parts[k, 0]
            if fits[i]:
                n_bytes = _unpack_part(
                    function, source + np.uint64(starts[i]), first, n_items, there
                )
                fits[i] = n_bytes == n_items * itemsize
            there += np.uint64(n_items * itemsize)
