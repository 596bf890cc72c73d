"""Compile a function with Numba and keep its type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Compile a function on first use; the machine code is cached next to its file.

    Kernels release the interpreter lock, so Dask's threads render side by side, and divide as
    NumPy does. Neither fast math nor parallel loops are used: bytes must not depend on them.
    """
    return cast("F", njit(cache=True, nogil=True, error_model="numpy")(function))
