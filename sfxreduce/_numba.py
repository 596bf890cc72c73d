"""Compile a function with Numba and keep its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

from numba import njit

__all__ = ["compiled", "compiled_as_numpy"]

P = ParamSpec("P")
T = TypeVar("T")


def compiled(function: Callable[P, T]) -> Callable[P, T]:
    """Compile at the first call, keep the machine code on disk, and let other threads run."""
    try:
        kernel = njit(cache=True, nogil=True)(function)
    except RuntimeError:  # nowhere to write to, as in a read-only container: compile per process
        kernel = njit(nogil=True)(function)
    return cast("Callable[P, T]", kernel)


F = TypeVar("F", bound=Callable[..., Any])


def compiled_as_numpy(function: F) -> F:
    """Compile a function on first use; the machine code is cached next to its file.

    Kernels release the interpreter lock, so Dask's threads render side by side, and divide as
    NumPy does. Neither fast math nor parallel loops are used: bytes must not depend on them.
    """
    return cast("F", njit(cache=True, nogil=True, error_model="numpy")(function))
