"""How a task that ends whatever runs it is cut down to the events that do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

__all__ = ["Rescue", "halves_of"]

Item = TypeVar("Item")
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
