"""How far a stage has come, told to whoever wants to show it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["Progress", "silent", "tracked"]

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
