"""Tasks on their way: a few for each thread, taken back as they are done, and never waited for
for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from dask.typing import Key
from distributed import Client, Future, KilledWorker
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError

from sfxreduce.cluster.restarts import Restarts
from sfxreduce.cluster.roll_call import RollCall
from sfxreduce.cluster.supply import NO_SUPPLY, Outlook, Supply
from sfxreduce.errors import ClusterError

__all__ = ["TASKS_PER_THREAD", "Flow", "SetAside"]

Task = TypeVar("Task")
Answer = TypeVar("Answer")

ANSWER_SECONDS = 60
"""In which a scheduler has to answer: it does little else."""

RESTART_SECONDS = 60

NOT_UNDERSTOOD = "Error during deserialization"
"""What Dask says where it lacks a module that a task needs."""

TASKS_PER_THREAD = 4
"""Tasks under way for each thread of a pool: one at work, and some to go on with."""

TYPICAL_TASKS = 50
"""A task may take as long as so many of its kind, and at least `SHORTEST_SECONDS`."""

SHORTEST_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SetAside:
    """What came of a task that is suspected of ending or holding up its worker.

    Parameters
    ----------
    why : str
        What was seen: "its workers died".
    """

    why: str


class Flow:
    """Hands tasks of one kind to workers and takes back what comes of them.

    Parameters
    ----------
    roll : RollCall
        Says which workers may have tasks.
    restarts : Restarts
        Is told of workers that are restarted here.
    patience_seconds : float
        Without any task done, after which the workers are restarted.
    supply : Supply
        Told how much work there is.
    total : int, optional
        Tasks of this kind, if that is known.
    """

    def __init__(
        self,
        client: Client,
        roll: RollCall,
        restarts: Restarts,
        *,
        patience_seconds: float,
        supply: Supply = NO_SUPPLY,
        total: int | None = None,
    ) -> None:
        self._client = client
        self._roll, self._restarts = roll, restarts
        self._patience = patience_seconds
        self._supply, self._total = supply, total
        self._done: SimpleQueue[Future[Any] | None] = SimpleQueue()
        self._in_vain = False
        self._n_done = 0
        self._thread_seconds = 0.0

    @property
    def most_seconds(self) -> float:
        """For how long a task of this kind may be at work, judged by those that are done."""
        if not self._n_done:
            return self._patience
        typical = self._thread_seconds / self._n_done
        return min(self._patience, max(SHORTEST_SECONDS, TYPICAL_TASKS * typical))

    def outcomes(
        self,
        tasks: Iterator[Task],
        submit: Callable[[list[Task]], list[Future[Any]]],
        *,
        needs: Callable[[Task], Collection[Key]],
        doubted: Callable[[Task, Any], bool] | None = None,
        at_least: int = 1,
    ) -> Iterator[tuple[Task, Any]]:
        """Give tasks as they are done, with their result or as `SetAside`.

        More are submitted when few are left. What is still under way is cancelled if the caller
        stops.

        Parameters
        ----------
        needs : callable
            Keys of all that the scheduler runs for a task.
        doubted : callable, optional
            Whether a result says that something cannot be read which can. Its worker is retired,
            and the task set aside.
        at_least : int
            Tasks that are submitted together.

        Raises
        ------
        ClusterError
            If the scheduler goes away, or restarting the workers does not help.
        RefusedError
            If a worker that joined is not to be trusted.
        Exception
            Whatever a task raised.
        """
        with self._roll.waking(self._done.put):
            yield from self._outcomes(tasks, submit, needs, doubted, at_least)

    def _outcomes(
        self,
        tasks: Iterator[Task],
        submit: Callable[[list[Task]], list[Future[Any]]],
        needs: Callable[[Task], Collection[Key]],
        doubted: Callable[[Task, Any], bool] | None,
        at_least: int,
    ) -> Iterator[tuple[Task, Any]]:
        under_way: dict[Future[Any], Task] = {}
        window = n_threads = 0
        try:
            while True:
                self._roll.check()
                if len(under_way) <= window // 2:
                    # Workers come and go while a run is under way.
                    n_threads = self._roll.threads(self._ask("ncores"))
                    window = max(at_least, TASKS_PER_THREAD * n_threads, len(under_way))
                    part = list(islice(tasks, window - len(under_way)))
                    with _scheduler_errors():
                        futures = submit(part) if part else []
                    under_way.update(zip(futures, part, strict=True))
                    for future in futures:
                        future.add_done_callback(self._done.put)
                if not under_way:
                    return
                started = time.monotonic()
                came = self._next(under_way, needs)
                self._thread_seconds += (time.monotonic() - started) * max(n_threads, 1)
                self._n_done += len(came)
                self._tell_outlook()
                for future, outcome in self._believed(came, under_way, doubted):
                    yield under_way.pop(future), outcome
        finally:
            # A scheduler that is gone has nothing left to cancel.
            with suppress(ClusterError):
                self._cancel([future for future in under_way if not future.done()])

    def _believed(
        self,
        came: list[tuple[Future[Any], Any]],
        tasks: Mapping[Future[Any], Task],
        doubted: Callable[[Task, Any], bool] | None,
    ) -> list[tuple[Future[Any], Any]]:
        """Set aside what only the worker that says it could not read; that worker is retired."""
        if doubted is None:
            return came
        doubts = {
            future
            for future, outcome in came
            if not isinstance(outcome, SetAside) and doubted(tasks[future], outcome)
        }
        if not doubts:
            return came
        # All are asked for first: what a retired worker held is made again, by others.
        makers = self._ask("who_has", keys=[future.key for future in doubts])
        for address in {address for held in makers.values() for address in held}:
            self._roll.retire(
                address,
                "expected to read what this machine reads of the run, found that it cannot; look "
                "at its file systems",
            )
        alone = SetAside(why="its worker alone could not read what it needs")
        return [(future, alone if future in doubts else outcome) for future, outcome in came]

    def _next(
        self, under_way: dict[Future[Any], Task], needs: Callable[[Task], Collection[Key]]
    ) -> list[tuple[Future[Any], Any]]:
        """Take what is done; if nothing is for too long, what may be the cause of it."""
        try:
            batch: set[Future[Any] | None] = {self._done.get(timeout=self._patience)}
            with suppress(Empty):
                while True:
                    batch.add(self._done.get_nowait())
            mine = {future for future in under_way if future in batch}
            came = list(self._gathered(mine).items())
        except Empty:
            if self._supply.is_coming() and not self._ask("ncores"):
                return []  # the queue of a batch system is long
            at_work = self._at_work()
            stuck = [f for f, task in under_way.items() if at_work.intersection(needs(task))]
            self._restart_without(stuck)
            return [(future, SetAside(why="nothing was done")) for future in stuck]
        self._in_vain &= not came
        return came

    def _tell_outlook(self) -> None:
        """Say what is left, so that as many workers come as are worth it."""
        if self._total is not None and self._n_done:
            left = max(self._total - self._n_done, 0)
            each = self._thread_seconds / self._n_done
            self._supply.expect(Outlook(tasks_left=left, seconds_a_task=each))

    def _gathered(self, batch: set[Future[Any]]) -> dict[Future[Any], Any]:
        """Results of futures that are done, in one request for all of them."""
        futures = dict(enumerate(batch))

        async def gather() -> dict[int, Any]:
            found: dict[int, Any] = await self._client.gather(
                futures, errors="skip", asynchronous=True
            )
            return found

        with _scheduler_errors():
            try:
                found = self._client.sync(gather, callback_timeout=self._patience)
            except TimeoutError:
                # Its worker may have stopped: they are asked for again when it was restarted.
                for future in batch:
                    self._done.put(future)
                raise Empty from None
        outcomes = {}
        for number, future in futures.items():
            failed = future.status in ("error", "cancelled")
            outcomes[future] = _suspicion(future) if failed else found[number]
        return outcomes

    def _at_work(self) -> set[Key]:
        """Keys of what workers are at, or will be at next."""
        return {key for keys in self._ask("processing").values() for key in keys}

    def _restart_without(self, stuck: list[Future[Any]]) -> None:
        """Restart all workers, and take from them what may hold them up."""
        self._cancel(stuck)
        workers = self._ask("identity", n_workers=-1)["workers"]
        if self._in_vain:
            raise ClusterError(
                f"twice no task was done within {self._patience:g} seconds, and no worker (of "
                f"{len(workers)}) was at work; look at them, or at their scheduler"
            )
        self._in_vain = not stuck
        with_nanny = [address for address, worker in workers.items() if worker["nanny"]]
        for address in with_nanny:
            self._restarts.expect(address, f"nothing was done for {self._patience:g} seconds")
        # One may be gone by then, and some may take longer to come back: nothing to wait for.
        with _scheduler_errors(), suppress(KeyError, TimeoutError):
            self._client.restart_workers(with_nanny, timeout=RESTART_SECONDS, raise_for_error=False)

    def _cancel(self, futures: list[Future[Any]]) -> None:
        async def cancel() -> None:
            await self._client.cancel(futures, asynchronous=True)

        if futures:
            with _scheduler_errors():
                self._client.sync(cancel, callback_timeout=ANSWER_SECONDS)

    def _ask(self, question: str, **arguments: Any) -> Any:
        """Ask the scheduler something, but do not wait for ever."""
        with _scheduler_errors():
            ask = getattr(self._client.scheduler, question)
            return self._client.sync(ask, callback_timeout=ANSWER_SECONDS, **arguments)


def _suspicion(future: Future[Any]) -> SetAside:
    """Set a task aside that may be what ends its workers; any other error is its own."""
    with _scheduler_errors():
        if future.status == "cancelled":
            raise CommClosedError
        error = future.exception(timeout=ANSWER_SECONDS)
    if isinstance(error, KilledWorker):
        return SetAside(why="its workers died")
    if isinstance(error, MemoryError):
        return SetAside(why="it ran out of memory")
    if isinstance(error, RuntimeError) and str(error).startswith(NOT_UNDERSTOOD):
        raise ClusterError(
            f"the scheduler does not understand its tasks ({error.__cause__}); scheduler and "
            "workers need the same sfxreduce as this command"
        ) from error
    raise error


@contextmanager
def _scheduler_errors() -> Iterator[None]:
    """Turn what is said by a scheduler that is gone into one line; tasks raise other errors."""
    try:
        yield
    except (ClosedClientError, FutureCancelledError, OSError) as error:
        raise ClusterError(
            "the scheduler went away while work was under way, or does not answer; nothing was "
            "published, the same command continues with another scheduler or without --scheduler"
        ) from error
