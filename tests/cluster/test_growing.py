"""Work begins in this process, and goes on with workers where that is sooner."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from itertools import count
from threading import Event
from typing import Any

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.cluster.growing import SECONDS_TO_GAIN, GrowingPool
from sfxreduce.cluster.pool import Rescue
from sfxreduce.errors import ClusterError


class Workers(SerialPool):
    """Counts what reaches it."""

    dashboard = "http://127.0.0.1:1/status"

    def __init__(self) -> None:
        self.n_blocks = self.n_items = 0
        self.rescued: list[Any] = []

    def blocks(
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        self.n_blocks += array.npartitions
        if rescue and rescue.item:
            self.rescued += map(rescue.item, range(array.npartitions))
        return super().blocks(array, needs_gpu=needs_gpu)

    def map(self, name: str, function: Any, items: Any, *, rescue: Any = None) -> Iterator[Any]:
        def counted() -> Iterator[Any]:
            for item in items:
                self.n_items += 1
                yield item

        return super().map(name, function, counted(), rescue=rescue)


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that goes on by this much whenever it is looked at."""
    ticks = count()
    return lambda: seconds * next(ticks)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are there before the next task."""

    def submitted(_: object, start: Callable[[], Pool]) -> Future[Pool]:
        future: Future[Pool] = Future()
        future.set_result(start())
        return future

    monkeypatch.setattr("sfxreduce.cluster.growing.ThreadPoolExecutor.submit", submitted)


def growing(seconds: float) -> tuple[GrowingPool, Workers]:
    workers = Workers()
    return GrowingPool(lambda: workers, n_workers=2, clock=ticking(seconds)), workers


NUMBERS = da.arange(40, chunks=4)  # ten blocks
RESCUE: Rescue[Any, Any] = Rescue(
    attempt=abs, halves=lambda _: (), lost=abs, joined=lambda item, _: item, item=lambda n: 100 + n
)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("seconds", "of_workers"),
    [
        (0.0, 0),
        # The first block tells nothing. Two workers save half of what is left: eight, seven, ...
        # times as long as a block takes.
        (2 * SECONDS_TO_GAIN / 8, 0),
        (2 * SECONDS_TO_GAIN / 8 + 1e-6, 8),
        (100 * SECONDS_TO_GAIN, 8),
    ],
)
def test_workers_are_started_where_they_are_done_sooner(seconds: float, of_workers: int) -> None:
    pool, workers = growing(seconds)
    found = dict(pool.blocks(NUMBERS, rescue=RESCUE))
    assert workers.n_blocks == of_workers
    assert pool.has_grown == bool(of_workers)
    assert workers.rescued == [100 + n for n in range(10 - of_workers, 10)][:of_workers]
    np.testing.assert_array_equal(np.concatenate([found[n] for n in range(10)]), np.arange(40))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("kind", [list, iter])
def test_items_reach_workers_once_each(kind: Callable[[Any], Any]) -> None:
    """Where nobody knows how many are left, as many as were done are expected."""
    pool, workers = growing(0.3 * SECONDS_TO_GAIN)
    found = list(pool.map("double", lambda x: 2 * x, kind(range(20))))
    assert sorted(found) == [(n, 2 * n) for n in range(20)]
    assert workers.n_items == (18 if kind is list else 12)


@pytest.mark.usefixtures("at_once")
def test_grown_once_and_used_for_everything_then() -> None:
    pool, workers = growing(SECONDS_TO_GAIN)
    assert pool.dashboard == ""
    list(pool.map("double", abs, range(20)))
    assert pool.dashboard == workers.dashboard
    list(pool.blocks(NUMBERS))
    list(pool.map("double", abs, range(3)))
    assert (workers.n_blocks, workers.n_items) == (10, 18 + 3)


def test_what_the_first_task_loads_and_compiles_starts_no_workers() -> None:
    def never() -> Pool:
        raise AssertionError("workers were started")

    times = iter([0.0, 1000.0, *(1000.0 + n for n in range(100))])
    pool = GrowingPool(never, n_workers=2, clock=lambda: next(times))
    assert len(dict(pool.blocks(NUMBERS))) == 10
    pool.close()


def test_work_goes_on_here_while_workers_start() -> None:
    workers, may_come = Workers(), Event()

    def start() -> Pool:
        assert may_come.wait(60)
        return workers

    pool = GrowingPool(start, n_workers=2, clock=ticking(SECONDS_TO_GAIN))
    blocks = pool.blocks(NUMBERS, rescue=RESCUE)
    found = [next(blocks) for _ in range(4)]
    assert not pool.has_grown
    may_come.set()
    pool.close()
    assert pool.has_grown
    found += blocks
    assert workers.rescued == [100 + n for n in range(4, 10)]
    np.testing.assert_array_equal(
        np.concatenate([values for _, values in sorted(found, key=lambda one: one[0])]),
        np.arange(40),
    )


def test_workers_that_come_too_late_have_nothing_to_do() -> None:
    workers, may_come = Workers(), Event()
    pool = GrowingPool(
        lambda: (may_come.wait(60), workers)[1], n_workers=2, clock=ticking(SECONDS_TO_GAIN)
    )
    assert len(dict(pool.blocks(NUMBERS))) == 10
    may_come.set()
    pool.close()
    assert workers.n_blocks == 0
    list(pool.map("double", abs, range(3)))
    assert workers.n_items == 3


def test_what_hinders_workers_from_starting_is_told() -> None:
    def start() -> Pool:
        raise ClusterError("no room")

    pool = GrowingPool(start, n_workers=2, clock=ticking(SECONDS_TO_GAIN))
    blocks = pool.blocks(NUMBERS)
    with pytest.raises(ClusterError, match="no room"):
        next(blocks), next(blocks), next(blocks)
        pool.close()
        list(blocks)


def test_nobody_starts_workers_for_nothing() -> None:
    def never() -> Pool:
        raise AssertionError("workers were started")

    pool = GrowingPool(never, n_workers=2, clock=ticking(SECONDS_TO_GAIN))
    assert list(pool.map("double", abs, [])) == []
    assert list(pool.map("double", abs, iter([-1]))) == [(0, 1)]
