"""Workers behind a Dask scheduler."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import dask.array as da
from dask.core import flatten
from distributed import Client, Future
from distributed.security import Security
from distributed.utils import silence_logging_cmgr
from numpy.typing import NDArray

from sfxreduce.cluster.connection import connect
from sfxreduce.cluster.in_flight import Flow, SetAside
from sfxreduce.cluster.isolated import Alone, Failed
from sfxreduce.cluster.local import local_cluster
from sfxreduce.cluster.pool import BLOCKS_AT_ONCE, PATIENCE_SECONDS, Rescue, part_of
from sfxreduce.cluster.respawn import kept_in_number
from sfxreduce.cluster.security import read_security
from sfxreduce.cluster.suspects import Suspect, results_of
from sfxreduce.errors import ClusterError
from sfxreduce.io.process import START_SECONDS

__all__ = ["DaskPool", "open_dask_pool"]

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 2
"""Of a task that raises an error: a disk elsewhere may have been away for a moment."""

ROUNDS_ALONE = 3
"""A task alone in its process does nothing to its worker. If that worker dies all the same, again
and again, the machine is to blame."""


class DaskPool:
    """Workers behind a Dask scheduler.

    Tasks of workers that die are done again elsewhere. A task whose workers die again and again,
    or that was at work when nothing was done for too long, is set aside and done alone.

    Parameters
    ----------
    patience_seconds : float
        Without any task done, after which the workers are restarted.
    """

    def __init__(self, client: Client, *, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._client = client
        self._patience = patience_seconds

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
        self,
        array: da.Array,
        *,
        needs_gpu: bool = False,
        rescue: Rescue[Any, NDArray[Any]] | None = None,
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

        def submit(part: list[tuple[int, Any]]) -> list[Future[Any]]:
            # As layers: of tasks one by one Dask would hash every argument.
            keys = [key for _, key in part]
            futures: list[Future[Any]] = self._client.get(
                part_of(array, keys), keys, sync=False, resources=resources, retries=RETRIES
            )
            return futures

        work = _Work(
            name=str(array.name).partition("-")[0],
            function=rescue.attempt if rescue else _no_rescue,
            rescue=rescue,
            resources=resources,
        )
        flow = Flow(self._client, patience_seconds=self._patience)
        tasks = flow.outcomes(
            enumerate(flatten(array.__dask_keys__())),
            submit,
            # A block that was taken out of an array rests on that array's block.
            needs=lambda task: part_of(array, [task[1]]).keys(),
            at_least=BLOCKS_AT_ONCE,
        )
        yield from self._results(flow, tasks, work)

    def map(
        self,
        name: str,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        rescue: Rescue[Item, Result] | None = None,
    ) -> Iterator[tuple[int, Result]]:
        """Submit one task per item. See `Pool.map`."""
        work = _Work(name=name, function=function, rescue=rescue)
        flow = Flow(self._client, patience_seconds=self._patience)
        yield from self._results(flow, self._outcomes(flow, enumerate(items), work), work)

    def _results(
        self, flow: Flow, outcomes: Iterator[tuple[tuple[int, Any], Any]], work: _Work
    ) -> Iterator[tuple[int, Any]]:
        """Give numbers and results of tasks as they are done; those that were set aside last."""
        suspects: list[Suspect] = []
        for (number, what), outcome in outcomes:
            if isinstance(outcome, SetAside):
                item = work.item(number, what)
                suspects.append(Suspect(number=number, item=item, why=outcome.why))
            else:
                yield number, outcome
        if suspects:
            each = partial(self._each, work, flow.most_seconds)
            yield from results_of(suspects, work.function, each, name=work.name, rescue=work.rescue)

    def _outcomes(
        self, flow: Flow, items: Iterator[tuple[int, Any]], work: _Work
    ) -> Iterator[tuple[tuple[int, Any], Any]]:
        """Outcomes of one call for each item. See `Flow.outcomes`."""
        token = f"{work.name}-{uuid.uuid4().hex}"

        def submit(part: list[tuple[int, Any]]) -> list[Future[Any]]:
            numbers, chosen = zip(*part, strict=True)
            futures: list[Future[Any]] = self._client.map(
                work.function,
                chosen,
                key=[(token, number) for number in numbers],
                pure=False,
                retries=RETRIES,
                resources=work.resources,
            )
            return futures

        return flow.outcomes(items, submit, needs=lambda task: [(token, task[0])])

    def _each(
        self,
        work: _Work,
        seconds: float,
        function: Callable[[Any], Any],
        items: Iterable[Any],
    ) -> Iterator[tuple[int, tuple[Any] | Failed]]:
        """Call a function on each item, each time in a process of its own. See `Each`."""
        alone = replace(
            work, name=f"{work.name}-alone", function=Alone(function=function, seconds=seconds)
        )
        left = list(enumerate(items))
        for _ in range(ROUNDS_ALONE):
            flow = Flow(self._client, patience_seconds=START_SECONDS + 2 * seconds)
            again: list[tuple[int, Any]] = []
            for task, outcome in self._outcomes(flow, iter(left), alone):
                if isinstance(outcome, SetAside):
                    again.append(task)
                else:
                    yield task[0], outcome
            left = again
        if left:
            raise ClusterError(
                f"workers die at task {left[0][0]} of '{alone.name}', which is in a process of its "
                "own; look at the machines they run on, or work elsewhere"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a kind of tasks calls, and how it is rescued."""

    name: str
    function: Callable[[Any], Any]
    rescue: Rescue[Any, Any] | None
    resources: dict[str, int] | None = None

    def item(self, number: int, what: Any) -> Any:
        """What a task is about: of a block, its rescue knows."""
        if self.rescue is None or self.rescue.item is None:
            return what
        return self.rescue.item(number)


def _no_rescue(key: Any) -> None:
    raise ClusterError(
        f"block {key} ends its workers again and again; give them more memory, or try --serial"
    )


@contextmanager
def open_dask_pool(
    *,
    scheduler: str,
    n_workers: int,
    gpu: bool,
    security: Path | None,
    patience_seconds: float,
) -> Iterator[DaskPool]:
    """Open a pool of workers elsewhere, or on this machine where no scheduler is named.

    See `sfxreduce.cluster.open.open_pool`.
    """
    certificates = read_security(security) if security else None
    clients = (
        _connected(scheduler, certificates)
        if scheduler
        else _own_cluster(n_workers, gpu, certificates)
    )
    with clients as client:
        yield DaskPool(client, patience_seconds=patience_seconds)


@contextmanager
def _connected(scheduler: str, certificates: Security | None) -> Iterator[Client]:
    # What goes wrong is told in one line, here; Dask would add pages of its own.
    with (
        silence_logging_cmgr(logging.CRITICAL),
        connect(scheduler, security=certificates) as client,
    ):
        yield client


@contextmanager
def _own_cluster(n_workers: int, gpu: bool, certificates: Security | None) -> Iterator[Client]:
    with (
        local_cluster(n_workers, gpu=gpu, security=certificates) as cluster,
        kept_in_number(cluster),
        Client(cluster) as client,
    ):
        yield client
