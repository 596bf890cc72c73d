"""Workers behind a Dask scheduler."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import dask.array as da
from dask.core import flatten
from distributed import Client, Future
from distributed.security import Security
from distributed.utils import silence_logging_cmgr
from numpy.typing import NDArray

from sfxreduce.cluster.connection import connect
from sfxreduce.cluster.dashboard import Dashboard, dashboard_of
from sfxreduce.cluster.forks import forked_workers
from sfxreduce.cluster.in_flight import Flow, SetAside
from sfxreduce.cluster.isolated import Alone, Failed
from sfxreduce.cluster.local import local_cluster
from sfxreduce.cluster.pool import (
    BLOCKS_AT_ONCE,
    PATIENCE_SECONDS,
    Needs,
    Rescue,
    part_of,
    unheard,
)
from sfxreduce.cluster.respawn import kept_in_number
from sfxreduce.cluster.restarts import Restarts
from sfxreduce.cluster.roll_call import RollCall
from sfxreduce.cluster.security import read_security
from sfxreduce.cluster.supply import NO_SUPPLY, Supply
from sfxreduce.cluster.suspects import Suspect, results_of
from sfxreduce.errors import ClusterError
from sfxreduce.io.process import START_SECONDS

if TYPE_CHECKING:
    from sfxreduce.cluster.slurm.profile import SlurmProfile

__all__ = ["DaskPool", "Where", "open_dask_pool"]

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
    drop_bad_workers : bool
        Do without workers that fail the roll call; else the work stops.
    tell : callable
        Given one line about each worker that is done without, or is started again.
    supply : Supply
        Where more workers come from.
    """

    def __init__(
        self,
        client: Client,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        drop_bad_workers: bool = False,
        tell: Callable[[str], None] = unheard,
        supply: Supply = NO_SUPPLY,
    ) -> None:
        self._client, self._supply = client, supply
        self._patience = patience_seconds
        self._roll = RollCall(client, drop_bad=drop_bad_workers, tell=tell, supply=supply)
        self._restarts = Restarts(client, name_of=self._roll.name_of, tell=tell)

    def close(self) -> None:
        """Ask workers nothing any more."""
        self._restarts.close()
        self._roll.close()

    def await_workers(self, seconds: float) -> int:
        """Wait for all workers that there should be, but not for longer; return their number."""
        there = len(self._client.scheduler_info(n_workers=-1)["workers"])
        return max(there, self._supply.await_all(seconds))

    @property
    def facts(self) -> Mapping[str, Any]:
        """Who did the work, and what was started again, as ``--json`` tells it."""
        scheduler = self._client.scheduler
        address = str(scheduler.address) if scheduler is not None else ""
        return {
            "cluster": {
                "scheduler": address,
                "workers": self._roll.to_json(),
                **self._supply.facts,
            },
            "restarts": self._restarts.to_json(),
        }

    def needing(self, needs: Needs) -> AbstractContextManager[None]:
        """Call the roll for what a block needs. See `Pool.needing`."""
        return self._roll.of(needs)

    @property
    def dashboard(self) -> str:
        """Address of the dashboard."""
        return str(self._client.dashboard_link or "")

    @cached_property
    def dashboard_here(self) -> Dashboard | None:
        """Dashboard of a cluster of this process. See `Pool.dashboard_here`."""
        return dashboard_of(self._client)

    @property
    def has_gpu(self) -> bool:
        """Whether any worker offers the resource ``GPU``."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        offered = any(worker["resources"].get("GPU") for worker in workers)
        return offered or self._supply.offers_gpu

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
        resources = {"GPU": 1.0} if needs_gpu else {}
        if needs_gpu and not self.has_gpu:
            raise ClusterError(
                "expected a worker that offers the resource GPU, found none; start one with "
                "--resources GPU=1, or use --device cpu"
            )

        self._roll.begin()
        resources |= self._roll.resources

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
        flow = self._flow(self._patience, array.npartitions)
        tasks = flow.outcomes(
            enumerate(flatten(array.__dask_keys__())),
            submit,
            # A block that was taken out of an array rests on that array's block.
            needs=lambda task: part_of(array, [task[1]]).keys(),
            doubted=work.doubted,
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
        self._roll.begin()
        work = _Work(
            name=name, function=function, rescue=rescue, resources=dict(self._roll.resources)
        )
        flow = self._flow(self._patience, len(items) if isinstance(items, Sized) else None)
        outcomes = self._outcomes(flow, enumerate(items), work, doubted=work.doubted)
        yield from self._results(flow, outcomes, work)

    def _flow(self, patience_seconds: float, total: int | None = None) -> Flow:
        return Flow(
            self._client,
            self._roll,
            self._restarts,
            patience_seconds=patience_seconds,
            supply=self._supply,
            total=total,
        )

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
        self,
        flow: Flow,
        items: Iterator[tuple[int, Any]],
        work: _Work,
        *,
        doubted: Callable[[tuple[int, Any], Any], bool] | None,
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

        return flow.outcomes(items, submit, needs=lambda task: [(token, task[0])], doubted=doubted)

    def _each(
        self,
        work: _Work,
        seconds: float,
        function: Callable[[Any], Any],
        items: Iterable[Any],
    ) -> Iterator[tuple[int, tuple[Any] | Failed]]:
        """Call a function on each item, each time in a process of its own. See `Each`."""
        alone = replace(
            work,
            name=f"{work.name}-alone",
            function=Alone(function=function, seconds=seconds),
        )

        def doubted(task: tuple[int, Any], outcome: tuple[Any] | Failed) -> bool:
            # Of parts of items, and of what they are joined to, nothing is known here.
            if function is not work.function or isinstance(outcome, Failed):
                return False
            return work.doubts(task[1], outcome[0])

        why = ""
        left = list(enumerate(items))
        for _ in range(ROUNDS_ALONE):
            flow = self._flow(START_SECONDS + 2 * seconds)
            again: list[tuple[int, Any]] = []
            for task, outcome in self._outcomes(flow, iter(left), alone, doubted=doubted):
                if isinstance(outcome, SetAside):
                    why = outcome.why
                    again.append(task)
                else:
                    yield task[0], outcome
            left = again
        if left:
            raise ClusterError(
                f"task {left[0][0]} of '{alone.name}', which is in a process of its own, cannot be "
                f"done: {why}; look at the machines of the workers, or work elsewhere"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a kind of tasks calls, and how it is rescued."""

    name: str
    function: Callable[[Any], Any]
    rescue: Rescue[Any, Any] | None
    resources: dict[str, float]

    def doubted(self, task: tuple[int, Any], result: Any) -> bool:
        """Whether a result is not to be believed; see `Rescue`."""
        return self.doubts(self.item(*task), result)

    def doubts(self, item: Any, result: Any) -> bool:
        """Whether what came of an item is not to be believed."""
        doubted = self.rescue.doubted if self.rescue else None
        return doubted is not None and doubted(item, result)

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
    where: Where,
    *,
    patience_seconds: float,
    drop_bad_workers: bool,
    tell: Callable[[str], None],
) -> Iterator[DaskPool]:
    """Open a pool of workers, wherever they are.

    See `sfxreduce.cluster.open.open_pool`.
    """
    with _workers(where, tell) as (client, supply):
        pool = DaskPool(
            client,
            patience_seconds=patience_seconds,
            drop_bad_workers=drop_bad_workers,
            tell=tell,
            supply=supply,
        )
        try:
            yield pool
        finally:
            pool.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Which workers: of a scheduler, of a profile, or of this machine if neither is given.

    Parameters
    ----------
    scheduler : str
        Address of a running scheduler.
    profile : SlurmProfile, optional
        Of the jobs that are workers.
    n_workers : int
        Of this machine; 0 for one per processor or graphics card.
    security : Path, optional
        Certificates, see `read_security`.
    """

    scheduler: str = ""
    profile: SlurmProfile | None = None
    n_workers: int = 0
    gpu: bool = False
    security: Path | None = None


@contextmanager
def _workers(where: Where, tell: Callable[[str], None]) -> Iterator[tuple[Client, Supply]]:
    """Client of the workers, of which there is at least one, and where more come from."""
    if where.profile is not None:
        from sfxreduce.cluster.slurm.cluster import slurm_cluster  # needs an extra

        with slurm_cluster(where.profile, security=where.security, tell=tell) as (client, jobs):
            jobs.wait(1)
            yield client, jobs
        return
    certificates = read_security(where.security) if where.security else None
    clients = (
        _connected(where.scheduler, certificates)
        if where.scheduler
        else _own_cluster(where.n_workers, where.gpu, certificates)
    )
    with clients as client:
        yield client, NO_SUPPLY


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
        forked_workers(),
        local_cluster(n_workers, gpu=gpu, security=certificates) as cluster,
        kept_in_number(cluster),
        # As a context of its own a client has to be closed by the thread that opened it.
        closing(Client(cluster)) as client,
    ):
        yield client
