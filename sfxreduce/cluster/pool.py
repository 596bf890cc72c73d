"""What a pool is, the one of this process, and what is known of the tasks of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import dask.array as da
import numpy as np
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.optimization import cull
from numpy.typing import NDArray

from sfxreduce.errors import UsageError

if TYPE_CHECKING:
    from sfxreduce.cluster.dashboard import Dashboard

__all__ = [
    "BLOCKS_AT_ONCE",
    "IN_PROCESS",
    "NO_NOTES",
    "PATIENCE_SECONDS",
    "Needs",
    "NeedsToCome",
    "Notes",
    "Pool",
    "Progress",
    "Rescue",
    "SerialPool",
    "each_once",
    "halves_of",
    "part_of",
    "silent",
    "tracked",
    "unheard",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCKS_AT_ONCE = 512
"""Blocks that are planned and submitted together. A task that is known to the scheduler costs it
and its client some 13 kB; a long run would fill gigabytes if all of its blocks were."""

PATIENCE_SECONDS = 1800.0
"""Without any task done, after which workers are restarted. The longest task of a filter run takes
a minute or two, on a slow disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What every worker has to see, and to hold, before it is given a task of some work.

    Parameters
    ----------
    inputs : tuple of Path
        Files and folders that tasks read.
    folder : Path, optional
        Where tasks write.
    model : Path, optional
        Folder or file of the model that scores.
    modules : tuple of str
        What tasks import: a worker is only called warm when it has.
    memory_bytes : int
        What a task takes besides the program.
    """

    inputs: tuple[Path, ...] = ()
    folder: Path | None = None
    model: Path | None = None
    modules: tuple[str, ...] = ()
    memory_bytes: int = 0


class NeedsToCome:
    """What is needed of a pool that is not there yet; whoever is asked is asked once it is."""

    def __init__(self) -> None:
        self._needs: Needs | None = None
        self._stack = ExitStack()

    @contextmanager
    def of(self, needs: Needs, pool: Pool | None) -> Iterator[None]:
        """Ask a pool, if there is one, or else the one that comes before the block ends."""
        self._needs = needs
        try:
            with self._stack:
                if pool is not None:
                    self.ask(pool)
                yield
        finally:
            self._needs = None

    def ask(self, pool: Pool) -> None:
        """Ask a pool that has come for what is needed, if anything is."""
        if self._needs is not None:
            self._stack.enter_context(pool.needing(self._needs))


class Pool(Protocol):
    """Somewhere to run tasks. Every pool gives the same results; only the order may differ."""

    @property
    def dashboard(self) -> str:
        """Address of the dashboard; empty if there is none."""
        ...

    @property
    def dashboard_here(self) -> Dashboard | None:
        """Dashboard that pages can be added to; None unless its scheduler is in this process."""
        ...

    @property
    def has_gpu(self) -> bool:
        """Whether any worker offers the resource ``GPU``."""
        ...

    def needing(self, needs: Needs) -> AbstractContextManager[None]:
        """Give tasks of this block only to workers that were proven to have what they need.

        Raises
        ------
        RefusedError
            If a worker has not, and is not to be done without.
        """
        ...

    def blocks(
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute a one-dimensional array block by block, as blocks are done.

        Parameters
        ----------
        needs_gpu : bool
            Run its tasks only on workers that offer the resource ``GPU``.
        rescue : Rescue, optional
            What to do with a block that ends every worker; it stops the work if not given.

        Yields
        ------
        tuple of int and ndarray
            Number of the block, and its values.
        """
        ...

    def map(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        rescue: Rescue[Item, Result] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Call a function on each item, as tasks of this name, and give results as they come.

        Parameters
        ----------
        items : iterable
            Taken as tasks are submitted: a few for each thread ahead of the results.
        rescue : Rescue, optional
            What to do with an item that ends every worker; it stops the work if not given.

        Yields
        ------
        tuple of int and result
            Number of the item, and its result.
        """
        ...


class SerialPool:
    """In this process, one task after the other: the reference that every cluster has to match.

    A task that ends its process ends this one; only workers can be spared.
    """

    dashboard = ""
    dashboard_here = None
    has_gpu = False

    def needing(self, needs: Needs) -> AbstractContextManager[None]:  # noqa: ARG002 - all is here
        """See `Pool.needing`."""
        return nullcontext()

    def blocks(
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,  # noqa: ARG002 - see the class
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute blocks in order. See `Pool.blocks`."""
        if needs_gpu:
            raise UsageError("--serial has no GPU workers; drop --serial or use --device cpu")
        keys = flatten(array.__dask_keys__())
        numbers = count()
        while part := list(islice(keys, BLOCKS_AT_ONCE)):
            graph = dict(part_of(array, part))
            # Each block with its own tasks only: a whole graph for each would cost its square.
            for key in part:
                yield next(numbers), get_sync(cull(graph, key)[0], key)

    def map(
        self,
        name: str,  # noqa: ARG002 - tasks of this process have no names
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        rescue: Rescue[Item, Result] | None = None,  # noqa: ARG002 - see the class
    ) -> Iterator[tuple[int, Result]]:
        """Call in order. See `Pool.map`."""
        yield from enumerate(map(function, items))


IN_PROCESS = SerialPool()
"""Where the work runs unless another pool is given. It holds nothing and needs no closing."""


def part_of(array: da.Array, keys: list[Any]) -> HighLevelGraph:
    """What some blocks of an array need; tasks of others are never made."""
    part: HighLevelGraph = array.dask.cull(keys)
    return part


class Notes(Protocol):
    """What the parts of a stage came to, by the number of the part."""

    def noted(self, stage: str) -> Mapping[int, bytes]:
        """Return what was noted of a stage before."""
        ...

    def note(self, stage: str, number: int, data: bytes) -> None:
        """Take down what a part came to."""
        ...

    def forget_after(self, stage: str) -> None:
        """Forget what was noted of the stages that came after one: they rest on it."""
        ...


class _NoNotes:
    """Remembers nothing."""

    def noted(self, stage: str) -> Mapping[int, bytes]:  # noqa: ARG002 - of no stage
        return {}

    def note(self, stage: str, number: int, data: bytes) -> None:
        pass

    def forget_after(self, stage: str) -> None:
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
    is_open: Callable[[NDArray[Any]], bool] | None = None,
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Give what every part of a stage comes to: from the notes, or else from the work itself.

    Parameters
    ----------
    work : callable
        Does the parts with these numbers, and gives the place in that list and the result of each
        as it is done.
    dtype : dtype
        Of one-dimensional results.
    is_open : callable, optional
        Whether a part has to be done again although something is noted of it.

    Yields
    ------
    tuple of int and ndarray
        Number of the part, and its result.
    """
    noted = {n: np.frombuffer(data, dtype) for n, data in notes.noted(stage).items()}
    known = {n: part for n, part in noted.items() if is_open is None or not is_open(part)}
    yield from known.items()
    left = [number for number in range(n_parts) if number not in known]
    if left:
        for place, result in work(left):
            before = noted.get(left[place])
            if before is not None and before.tobytes() != result.tobytes():
                notes.forget_after(stage)
            notes.note(stage, left[place], result.tobytes())
            yield left[place], result


class Progress(Protocol):
    """Called whenever a part of a stage is done."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take note that `done` of `total` parts of the stage are done."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """Tell nobody."""


def unheard(line: str) -> None:
    """Tell nobody what happens to workers."""


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
    doubted : callable, optional
        Whether this process can read what a result says cannot be read: then the worker that says
        so is alone, and is not believed.
    """

    attempt: Callable[[Item], Any]
    halves: Callable[[Item], Sequence[Item]]
    lost: Callable[[Item], Any]
    joined: Callable[[Item, Sequence[Any]], Result]
    item: Callable[[int], Item] | None = None
    doubted: Callable[[Item, Result], bool] | None = None

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
