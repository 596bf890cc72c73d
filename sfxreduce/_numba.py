"""Compile a function with Numba and keep its type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar, cast, overload

from numba import njit
from numba.extending import intrinsic as numba_intrinsic

__all__ = ["compiled", "intrinsic"]

P = ParamSpec("P")
T = TypeVar("T")


@overload
def compiled(function: Callable[P, T]) -> Callable[P, T]: ...
@overload
def compiled(
    *, cache: bool = True, inline: bool = False
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def compiled(
    function: Callable[P, T] | None = None, *, cache: bool = True, inline: bool = False
) -> Callable[P, T] | Callable[[Callable[P, T]], Callable[P, T]]:
    """Compile at the first call and keep the machine code on disk.

    Kernels let other threads run and divide as NumPy does: by zero gives infinity or NaN. Neither
    fast math nor parallel loops are used: bytes must not depend on them.

    Parameters
    ----------
    cache : bool
        False for a kernel that calls a C function: its address differs in every process.
    inline : bool
        Put the machine code into that of every caller, where loops over rows are too short to call
        anything.
    """
    if function is None:
        return partial(compiled, cache=cache, inline=inline)
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "forceinline": inline}
    try:
        kernel = njit(cache=cache, **options)(function)
    except RuntimeError:  # nowhere to write to, as in a read-only container: compile per process
        kernel = njit(**options)(function)
    return cast("Callable[P, T]", kernel)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an instruction for kernels of a function that writes it in LLVM's language.

    The function is given types, and returns a signature and what writes the instructions.
    """
    return numba_intrinsic(function)
