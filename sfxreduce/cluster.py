"""Where the work runs: in this process, on a cluster of this machine, or on a pool elsewhere."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, Protocol, TypeVar

import dask.array as da
from dask.core import flatten
from dask.highlevelgraph import HighLevelGraph
from dask.local import get_sync
from dask.optimization import cull
from distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    Nanny,
    Scheduler,
    SpecCluster,
    as_completed,
)
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from sfxreduce.errors import ClusterError, UsageError

__all__ = ["DaskPool", "Pool", "SerialPool", "open_pool"]

Item = TypeVar("Item")
Result = TypeVar("Result")

CONNECT_SECONDS = 10
RETRIES = 2

TASKS_PER_THREAD = 4
"""Tasks under way for each thread of a pool: one at work, and some to go on with."""

BLOCKS_AT_ONCE = 512
"""Blocks that are planned and submitted together. A task that is known to the scheduler costs it
and its client some 13 kB; a long run would fill gigabytes if all of its blocks were."""


class Pool(Protocol):
    """Somewhere to run tasks. Every pool gives the same results; only the order may differ."""

    @property
    def dashboard(self) -> str:
        """Address of the dashboard; empty if there is none."""
        ...

    @property
    def has_gpu(self) -> bool:
        """Whether any worker offers the resource ``GPU``."""
        ...

    def blocks(
        self, array: da.Array, *, needs_gpu: bool = False
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute a one-dimensional array block by block, as blocks are done.

        Parameters
        ----------
        array : dask.array.Array
        needs_gpu : bool
            Run its tasks only on workers that offer the resource ``GPU``.

        Yields
        ------
        tuple of int and ndarray
            Number of the block, and its values.
        """
        ...

    def map(
        self, name: str, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Call a function on each item, as tasks of this name, and give results as they come.

        Parameters
        ----------
        name : str
        function : callable
        items : iterable
            Taken as tasks are submitted: a few for each thread ahead of the results.

        Yields
        ------
        tuple of int and result
            Number of the item, and its result.
        """
        ...


class SerialPool:
    """In this process, one task after the other: the reference that every cluster has to match."""

    dashboard = ""
    has_gpu = False

    def blocks(
        self, array: da.Array, *, needs_gpu: bool = False
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute blocks in order. See `Pool.blocks`."""
        if needs_gpu:
            raise UsageError("--serial has no GPU workers; drop --serial or use --device cpu")
        keys = flatten(array.__dask_keys__())
        numbers = count()
        while part := list(islice(keys, BLOCKS_AT_ONCE)):
            graph = dict(_part(array, part))
            # Each block with its own tasks only: a whole graph for each would cost its square.
            for key in part:
                yield next(numbers), get_sync(cull(graph, key)[0], key)

    def map(
        self,
        name: str,  # noqa: ARG002 - tasks of this process have no names
        function: Callable[[Item], Result],
        items: Iterable[Item],
    ) -> Iterator[tuple[int, Result]]:
        """Call in order. See `Pool.map`."""
        yield from enumerate(map(function, items))


class DaskPool:
    """Workers behind a Dask scheduler.

    Parameters
    ----------
    client : distributed.Client
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    @property
    def dashboard(self) -> str:
        """Address of the dashboard."""
        return str(self._client.dashboard_link or "")

    @property
    def has_gpu(self) -> bool:
        """Whether any worker offers the resource ``GPU``."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        return any(worker["resources"].get("GPU") for worker in workers)

    def blocks(
        self, array: da.Array, *, needs_gpu: bool = False
    ) -> Iterator[tuple[int, NDArray[Any]]]:
        """Compute blocks on the workers. See `Pool.blocks`."""
        # Given here, resources reach every task; dask.annotate loses them when tasks are fused
        # (dask issue 7036), and GPU tasks would run anywhere.
        resources = {"GPU": 1} if needs_gpu else None
        if needs_gpu and not self.has_gpu:
            raise ClusterError(
                "expected a worker that offers the resource GPU, found none; start one with "
                "--resources GPU=1, or use --device cpu"
            )

        def submit(keys: list[Any]) -> list[Future[Any]]:
            # As layers: of tasks one by one Dask would hash every argument.
            futures: list[Future[Any]] = self._client.get(
                _part(array, keys), keys, sync=False, resources=resources, retries=RETRIES
            )
            return futures

        keys = flatten(array.__dask_keys__())
        yield from self._results(keys, submit, at_least=BLOCKS_AT_ONCE)

    def map(
        self, name: str, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[tuple[int, Result]]:
        """Submit one task per item. See `Pool.map`."""
        token = uuid.uuid4().hex

        def submit(part: list[tuple[int, Item]]) -> list[Future[Any]]:
            numbers, chosen = zip(*part, strict=True)
            keys = [(f"{name}-{token}", number) for number in numbers]
            futures: list[Future[Any]] = self._client.map(
                function, chosen, key=keys, pure=False, retries=RETRIES
            )
            return futures

        yield from self._results(enumerate(items), submit)

    def _results(
        self,
        tasks: Iterator[Item],
        submit: Callable[[list[Item]], list[Future[Any]]],
        *,
        at_least: int = 1,
    ) -> Iterator[tuple[int, Any]]:
        """Give numbers and results of tasks as they are done, and submit more when few are left.

        What is still under way is cancelled if the caller stops.
        """
        done = as_completed(loop=self._client.loop)
        under_way: set[Future[Any]] = set()
        window = 0
        with _cluster_errors():
            try:
                while True:
                    if len(under_way) <= window // 2:
                        # Workers come and go while a run is under way.
                        threads = sum(self._client.nthreads().values())
                        window = max(at_least, TASKS_PER_THREAD * threads)
                        part = list(islice(tasks, window - len(under_way)))
                        futures = submit(part) if part else []
                        under_way.update(futures)
                        done.update(futures)
                    if not under_way:
                        return
                    batch = done.next_batch()
                    under_way.difference_update(batch)
                    # One request for all that is done, not one for each.
                    yield from zip(map(_number, batch), self._client.gather(batch), strict=True)
            finally:
                self._client.cancel([future for future in under_way if not future.done()])


def _part(array: da.Array, keys: list[Any]) -> HighLevelGraph:
    """What some blocks of an array need; tasks of others are never made."""
    part: HighLevelGraph = array.dask.cull(keys)
    return part


def _number(future: Future[Any]) -> int:
    """Last part of a task's key: the number of its block or item."""
    key = future.key
    if not isinstance(key, tuple) or not isinstance(key[-1], int):
        raise ClusterError(f"expected a numbered task, found the key {key!r}")
    return key[-1]


@contextmanager
def open_pool(
    *, serial: bool = False, scheduler: str = "", n_workers: int = 0, gpu: bool = False
) -> Iterator[Pool]:
    """Open a pool and close it with the block.

    Parameters
    ----------
    serial : bool
        Work in this process.
    scheduler : str
        Address of a running Dask scheduler, as ``tcp://127.0.0.1:8786``.
    n_workers : int
        Worker processes of a cluster on this machine; 0 for one per processor. It listens on
        127.0.0.1 only.
    gpu : bool
        Whether the workers of that cluster offer the resource ``GPU``.

    Raises
    ------
    UsageError
        If both a scheduler and serial work are asked for.
    ClusterError
        If the scheduler does not answer.
    """
    if serial and scheduler:
        raise UsageError("--serial and --scheduler exclude each other; drop one of them")
    if serial:
        yield SerialPool()
    elif scheduler:
        with _connect(scheduler) as client:
            yield DaskPool(client)
    else:
        with _local_cluster(n_workers, gpu=gpu) as cluster, Client(cluster) as client:
            yield DaskPool(client)


def _local_cluster(n_workers: int, *, gpu: bool) -> SpecCluster:
    """Start workers on this machine that listen on 127.0.0.1 only."""
    processors = len(os.sched_getaffinity(0))
    # Ctrl-C reaches every process of a terminal. Workers inherit this mask and leave it to us;
    # the resource tracker, started later, would undo it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        if gpu:
            return _gpu_cluster(n_workers, visible_cards())
        return LocalCluster(
            n_workers=n_workers or processors,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def visible_cards() -> list[str]:
    """Graphics cards that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [card.strip() for card in named.split(",")]
    # The driver lists its cards; torch would open all of them to count them.
    cards = Path("/proc/driver/nvidia/gpus")
    return [str(i) for i in range(len(list(cards.iterdir())))] if cards.is_dir() else []


def _gpu_cluster(n_workers: int, cards: Sequence[str]) -> SpecCluster:
    """Workers that see one card each; more workers than cards share them in turn."""
    cards = cards or ["0"]
    n_workers = n_workers or len(cards)
    local = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "host": "127.0.0.1",
                "nthreads": 1,
                "resources": {"GPU": 1},
                "memory_limit": MEMORY_LIMIT // n_workers,  # by itself, one thread's share
                "silence_logs": logging.CRITICAL,
                # Set before the worker starts: CUDA reads it once per process.
                "env": {"CUDA_VISIBLE_DEVICES": cards[number % len(cards)]},
            },
        }
        for number in range(n_workers)
    }
    scheduler = {"cls": Scheduler, "options": {**local, "port": 0}}
    return SpecCluster(workers=workers, scheduler=scheduler, silence_logs=logging.CRITICAL)


def _connect(address: str) -> Client:
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{address}: no Dask scheduler answers within {CONNECT_SECONDS} seconds; check the "
            "address, or drop --scheduler to work on this machine"
        ) from error
    try:
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except TimeoutError as error:
        client.close()
        raise ClusterError(
            f"{address}: the scheduler has no workers after {CONNECT_SECONDS} seconds; start some "
            "with 'dask worker'"
        ) from error
    return client


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn the cluster's own failures into one line."""
    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"a task ended its worker again and again ({error.task}); look into the workers' "
            "memory limit, or try --serial"
        ) from error
    except (ClosedClientError, CommClosedError, FutureCancelledError) as error:
        raise ClusterError(
            "the scheduler went away while work was under way; nothing was published, start again"
        ) from error
