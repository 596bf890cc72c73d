"""Compile a function with Numba and keep its type."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pickle import UnpicklingError
from typing import Any, ParamSpec, TypeVar, cast, overload

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.registry import cpu_target
from numba.extending import intrinsic as numba_intrinsic

__all__ = ["compiled", "intrinsic", "load_types"]

P = ParamSpec("P")
T = TypeVar("T")

_FunctionCache: Any = FunctionCache  # numba has no types


@overload
def compiled(function: Callable[P, T]) -> Callable[P, T]: ...
@overload
def compiled(
    *, cache: bool = True, inline: bool = False, borrows: bool = False
) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def compiled(
    function: Callable[P, T] | None = None,
    *,
    cache: bool = True,
    inline: bool = False,
    borrows: bool = False,
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
    borrows : bool
        Work on the caller's arrays and make none. Then nobody counts who holds them, which in a
        short loop takes longer than the work.
    """
    if function is None:
        return partial(compiled, cache=cache, inline=inline, borrows=borrows)
    options: Any = {"forceinline": inline, "_nrt": not borrows}
    kernel: Any = njit(nogil=True, error_model="numpy", **options)(function)
    if cache:
        # Where there is nowhere to write to, as in a read-only container, every process compiles.
        with suppress(RuntimeError):
            kernel._cache = _MachineCode(function)  # noqa: SLF001 - as Dispatcher.enable_caching
    return cast("Callable[P, T]", kernel)


class _MachineCode(_FunctionCache):  # type: ignore[misc]
    """Machine code on disk. What another version of this package left there counts as none.

    Numba unpickles the index of older code before it compares dates, and fails where a class that
    a kernel took is gone.
    """

    def load_overload(self, signature: Any, context: Any) -> Any:
        """Load the code for a signature; None if there is none."""
        try:
            return super().load_overload(signature, context)
        except (AttributeError, ImportError, EOFError, UnpicklingError, TypeError, ValueError):
            self.flush()
            return None


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an instruction for kernels of a function that writes it in LLVM's language.

    The function is given types, and returns a signature and what writes the instructions.
    """
    return numba_intrinsic(function)


def load_types() -> None:
    """Load what Numba knows of types and functions, as the first call of a kernel does."""
    for known in (cpu_target.typing_context, cpu_target.target_context):
        known.refresh()
