"""Notes of what is done, so that work which was cut off need not be done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_NOTES", "Notes", "each_once"]


class Notes(Protocol):
    """What the parts of a stage came to, by the number of the part."""

    def noted(self, stage: str) -> Mapping[int, bytes]:
        """Return what was noted of a stage before."""
        ...

    def note(self, stage: str, number: int, data: bytes) -> None:
        """Take down what a part came to."""
        ...


class _NoNotes:
    """Remembers nothing."""

    def noted(self, stage: str) -> Mapping[int, bytes]:  # noqa: ARG002 - of no stage
        return {}

    def note(self, stage: str, number: int, data: bytes) -> None:
        pass


NO_NOTES: Notes = _NoNotes()
"""For work that is not worth it."""


def each_once(
    notes: Notes,
    stage: str,
    n_parts: int,
    work: Callable[[Sequence[int]], Iterator[tuple[int, NDArray[Any]]]],
    *,
    dtype: np.dtype[Any],
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Give what every part of a stage comes to: from the notes, or else from the work itself.

    Parameters
    ----------
    work : callable
        Does the parts with these numbers, and gives the place in that list and the result of each
        as it is done.
    dtype : dtype
        Of one-dimensional results.

    Yields
    ------
    tuple of int and ndarray
        Number of the part, and its result.
    """
    known = notes.noted(stage)
    for number, data in known.items():
        yield number, np.frombuffer(data, dtype)
    left = [number for number in range(n_parts) if number not in known]
    if left:
        for place, result in work(left):
            notes.note(stage, left[place], result.tobytes())
            yield left[place], result
