"""Tasks that ended or held up their workers: done again, each in a process of its own.

Most of them are innocent: they shared a worker with the one that ended it, or somebody killed that
worker. What fails alone as well is cut in halves until what cannot be done is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from sfxreduce.cluster.isolated import Failed
from sfxreduce.cluster.pool import Rescue
from sfxreduce.errors import ClusterError

__all__ = ["Each", "Suspect", "cannot_be_done", "results_of"]

Each: TypeAlias = Callable[
    [Callable[[Any], Any], Iterable[Any]], Iterator[tuple[int, "tuple[Any] | Failed"]]
]
"""Calls a function on each item in a process of its own, and gives numbers and outcomes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A task that was set aside.

    Parameters
    ----------
    number : int
        Of the task.
    item : object
        What it is about.
    why : str
        Why it was set aside, and then how it ended when it ran alone.
    """

    number: int
    item: Any
    why: str


def results_of(
    suspects: list[Suspect],
    function: Callable[[Any], Any],
    each: Each,
    *,
    name: str,
    rescue: Rescue[Any, Any] | None,
) -> Iterator[tuple[int, Any]]:
    """Give number and result of tasks that were set aside.

    Parameters
    ----------
    function : callable
        What the tasks call.
    each : callable
        See `Each`.
    name : str
        Of the tasks, for the message.
    rescue : Rescue or None
        How to do without the part that cannot be done.

    Raises
    ------
    ClusterError
        If a task cannot be done and nothing stands for it.
    """
    guilty: list[Suspect] = []
    for place, outcome in each(function, [suspect.item for suspect in suspects]):
        suspect = suspects[place]
        if isinstance(outcome, Failed):
            guilty.append(replace(suspect, why=f"alone, it {outcome.why}"))
        else:
            yield suspect.number, outcome[0]
    if not guilty:
        return
    if rescue is None:
        raise cannot_be_done(name, guilty[0])
    parts = _in_parts(guilty, each, rescue)
    whole = [(suspect.item, made) for suspect, made in zip(guilty, parts, strict=True)]
    for place, outcome in each(_Join(joined=rescue.joined), whole):
        suspect = guilty[place]
        if isinstance(outcome, Failed):
            raise cannot_be_done(name, suspect)
        yield suspect.number, outcome[0]


def _in_parts(guilty: list[Suspect], each: Each, rescue: Rescue[Any, Any]) -> list[list[Any]]:
    """What the parts of each item gave, in order; all items are halved side by side."""
    found: dict[tuple[int, ...], Any] = {}
    pieces: list[tuple[tuple[int, ...], Any]]
    pieces = [((n,), suspect.item) for n, suspect in enumerate(guilty)]
    failing = pieces
    while failing:
        pieces = []
        for path, item in failing:
            halves = rescue.halves(item)
            if halves:
                pieces += [((*path, n), half) for n, half in enumerate(halves)]
            else:
                found[path] = rescue.lost(item)
        failing = []
        for place, outcome in each(rescue.attempt, [item for _, item in pieces]):
            path, item = pieces[place]
            if isinstance(outcome, Failed):
                failing.append((path, item))
            else:
                found[path] = outcome[0]
    return [[found[path] for path in sorted(found) if path[0] == n] for n in range(len(guilty))]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Join:
    """`Rescue.joined` as a call with one argument."""

    joined: Callable[[Any, Any], Any]

    def __call__(self, whole: tuple[Any, list[Any]]) -> Any:
        item, parts = whole
        return self.joined(item, parts)


def cannot_be_done(name: str, suspect: Suspect) -> ClusterError:
    """Say in one line which task cannot be done, and why."""
    return ClusterError(
        f"task {suspect.number} of '{name}' cannot be done: {suspect.why}; "
        "give the workers more memory or time, or look at its input with --serial"
    )
