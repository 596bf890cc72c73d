"""Notes of what is done, so that work which was cut off need not be done again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["NO_NOTES", "Notes", "Progress", "Rescue", "each_once", "halves_of", "silent", "tracked"]


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


Item = TypeVar("Item")


class Progress(Protocol):
    """Called whenever a part of a stage is done."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note that `done` of `total` parts of the stage are done."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def tracked(parts: Iterable[Item], *, stage: str, total: int, progress: Progress) -> Iterator[Item]:
    """Pass parts on as they come, and tell how many there were.

    Examples
    --------
    >>> def show(stage, done, total):
    ...     print(stage, done, "of", total)
    >>> list(tracked("ab", stage="score", total=2, progress=show))
    score 0 of 2
    score 1 of 2
    score 2 of 2
    ['a', 'b']
    """
    progress(stage, 0, total)
    for done, part in enumerate(parts, start=1):
        progress(stage, done, total)
        yield part


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescue(Generic[Item, Result]):
    """What to do with a task that ends, or hangs, every process that runs it.

    The task is tried in halves, and halves of halves, each in a process of its own, until what
    cannot be done at all is found. All functions but `item` and `lost` run in such processes and
    have to be importable there.

    Parameters
    ----------
    attempt : callable
        Does a part of an item, without consequences: it may run more than once.
    halves : callable
        Cuts an item in two; nothing if there is nothing left to cut.
    lost : callable
        Stands for what an uncuttable part would have given.
    joined : callable
        Makes the result of an item of what its parts gave, in order.
    item : callable, optional
        Gives the item of a block of an array, for `Pool.blocks`.
    """

    attempt: Callable[[Item], Any]
    halves: Callable[[Item], Sequence[Item]]
    lost: Callable[[Item], Any]
    joined: Callable[[Item, Sequence[Any]], Result]
    item: Callable[[int], Item] | None = None

    def of_parts(self, numbers: Sequence[int]) -> Rescue[Item, Result]:
        """Return the same for an array of some of the blocks, with these numbers."""
        item = self.item
        return self if item is None else replace(self, item=lambda place: item(numbers[place]))


Events = TypeVar("Events", range, tuple[int, ...])


def halves_of(events: Events) -> tuple[Events, ...]:
    """Cut events in two halves; nothing if there are fewer than two.

    Examples
    --------
    >>> halves_of(range(4, 7))
    (range(4, 5), range(5, 7))
    >>> halves_of((7,))
    ()
    """
    middle = len(events) // 2
    return (events[:middle], events[middle:]) if middle else ()
