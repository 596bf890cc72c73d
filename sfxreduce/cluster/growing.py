"""Work in this process until workers have come, if it is worth their start."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import dask.array as da
from numpy.typing import NDArray

from sfxreduce.cluster.pool import Needs, NeedsToCome, Pool, Rescue, SerialPool

if TYPE_CHECKING:
    from sfxreduce.cluster.dashboard import Dashboard

__all__ = ["SECONDS_TO_GAIN", "GrowingPool"]

Item = TypeVar("Item")
Result = TypeVar("Result")

SECONDS_TO_GAIN = 9.0
"""That workers have to save, by the time of the tasks alone, before they are started. Two of them
take about 9 CPU-seconds to come up, and their tasks are somewhat slower: with this, 4,032 whole
frames are done in 0.86 of the time of one process, for 1.37 times its CPU time."""


class GrowingPool:
    """Little work is done in this process, more of it by workers: the results are the same.

    What a task takes is known once some are done, and what is left of a stage then tells whether
    workers would be done earlier, their start included. While they start, the work goes on here.
    Once they are there, they do everything.

    A task that ends its process ends this one as long as there are no workers. It is for tasks that
    read what cannot do that.

    Parameters
    ----------
    start_workers : callable
        Called once, if ever, in a thread of its own.
    n_workers : int
        How many there will be; by default one per processor.
    clock : callable, optional
        Gives seconds; for tests.

    Examples
    --------
    >>> pool = GrowingPool(start_workers=SerialPool, n_workers=2)
    >>> list(pool.map("square", lambda x: x * x, [1, 2, 3]))
    [(0, 1), (1, 4), (2, 9)]
    >>> pool.has_grown
    False
    """

    has_gpu = False

    def __init__(
        self,
        start_workers: Callable[[], Pool],
        *,
        n_workers: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._start_workers = start_workers
        self._n_workers = n_workers or len(os.sched_getaffinity(0))
        self._clock = clock
        self._starter = ThreadPoolExecutor(1, "start of workers")
        self._coming: Future[Pool] | None = None
        self._to_come = NeedsToCome()

    def close(self) -> None:
        """Wait until workers that are starting have started, so that they can be closed."""
        self._starter.shutdown()

    @property
    def has_grown(self) -> bool:
        """Whether the workers are there."""
        return self._coming is not None and self._coming.done()

    @property
    def _workers(self) -> Pool | None:
        """The workers, once they are there; what went wrong with their start is raised here."""
        return self._coming.result() if self._coming is not None and self.has_grown else None

    @property
    def dashboard(self) -> str:
        """Address of the dashboard; empty as long as there is none."""
        return self._workers.dashboard if self._workers else ""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Who did the work, as `sfxreduce.cluster.dask_pool.DaskPool` tells it."""
        # Workers that could not be started, and came to be needed no more, did none of it.
        failed = self.has_grown and self._coming is not None and self._coming.exception()
        facts: Mapping[str, Any] = {} if failed else getattr(self._workers, "facts", {})
        return facts

    def needing(self, needs: Needs) -> AbstractContextManager[None]:
        """Say what tasks of a block need; workers are asked when they are started."""
        return self._to_come.of(needs, self._workers)

    @property
    def dashboard_here(self) -> Dashboard | None:
        """Dashboard that pages can be added to; None as long as there is none."""
        return self._workers.dashboard_here if self._workers else None

    def blocks(
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute block by block. See `Pool.blocks`."""
        n_blocks, done = array.npartitions, 0
        if not self.has_grown:
            one_by_one = SerialPool().blocks(array, needs_gpu=needs_gpu)
            for block in self._while_small(one_by_one, n_blocks):
                done += 1
                yield block
        left = range(done, n_blocks)
        workers = self._workers
        if not left or workers is None:
            return
        if done:
            array = array.blocks[list(left)]
            rescue = rescue and rescue.of_parts(left)
        for place, values in workers.blocks(array, needs_gpu=needs_gpu, rescue=rescue):
            yield left[place], values

    def map(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        rescue: Rescue[Item, Result] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Call a function on each item. See `Pool.map`."""
        left, done = iter(items), 0
        if not self.has_grown:
            total = len(items) if isinstance(items, Sized) else None
            one_by_one = SerialPool().map(name, function, left)
            for one in self._while_small(one_by_one, total):
                done += 1
                yield one
        workers = self._workers
        if workers is None:
            return
        for place, result in workers.map(name, function, left, rescue=rescue):
            yield done + place, result

    def _while_small(self, results: Iterator[Result], total: int | None) -> Iterator[Result]:
        """Pass results on until the workers have come that what is left is worth.

        Parameters
        ----------
        total : int or None
            How many there are; if that is not known, as much again is taken to be left as is done.
        """
        spent: list[float] = []
        begun = self._clock()
        for result in results:
            spent.append(self._clock() - begun)
            yield result
            worth = _seconds_left(spent, total) * (1 - 1 / self._n_workers) > SECONDS_TO_GAIN
            if worth and self._coming is None:
                self._coming = self._starter.submit(self._started)
            if self.has_grown:
                return
            begun = self._clock()

    def _started(self) -> Pool:
        workers = self._start_workers()
        self._to_come.ask(workers)
        return workers


def _seconds_left(spent: Sequence[float], total: int | None) -> float:
    """Say how long the tasks that are left will take here.

    Parameters
    ----------
    spent : sequence of float
        Seconds of each task that is done. The first loads and compiles, and tells nothing; the
        shortest other one tells what the next will take.
    """
    usual = spent[1:]
    if not usual or total is None:
        return sum(usual)
    return min(usual) * (total - len(spent))
