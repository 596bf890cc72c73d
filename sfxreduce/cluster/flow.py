"""Tasks on their way: a few for each thread, taken back as they are done, and never waited for
for ever.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from distributed import Client, Future, KilledWorker
from distributed.client import ClosedClientError, FutureCancelledError
from distributed.comm.core import CommClosedError

from sfxreduce.errors import ClusterError

__all__ = ["PATIENCE_SECONDS", "TASKS_PER_THREAD", "Flow", "SetAside"]

Task = TypeVar("Task")
Answer = TypeVar("Answer")

PATIENCE_SECONDS = 1800.0
"""Without any task done, after which the workers are restarted. The longest task of a filter run
takes a minute or two, on a slow disk."""

ANSWER_SECONDS = 60
"""In which a scheduler has to answer: it does little else."""

RESTART_SECONDS = 60

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
    client : distributed.Client
    patience_seconds : float
        Without any task done, after which the workers are restarted.
    """

    def __init__(self, client: Client, *, patience_seconds: float) -> None:
        self._client = client
        self._patience = patience_seconds
        self._done: SimpleQueue[Future[Any]] = SimpleQueue()
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
        at_least: int = 1,
    ) -> Iterator[tuple[Task, Any]]:
        """Give tasks as they are done, with their result or as `SetAside`.

        More are submitted when few are left. What is still under way is cancelled if the caller
        stops.

        Parameters
        ----------
        tasks : iterator
        submit : callable
        at_least : int
            Tasks that are submitted together.

        Raises
        ------
        ClusterError
            If the scheduler goes away, or restarting the workers does not help.
        Exception
            Whatever a task raised.
        """
        under_way: dict[Future[Any], Task] = {}
        window = n_threads = 0
        with _cluster_errors():
            try:
                while True:
                    if len(under_way) <= window // 2:
                        # Workers come and go while a run is under way.
                        n_threads = sum(self._ask("ncores").values())
                        window = max(at_least, TASKS_PER_THREAD * n_threads)
                        part = list(islice(tasks, window - len(under_way)))
                        futures = submit(part) if part else []
                        under_way.update(zip(futures, part, strict=True))
                        for future in futures:
                            future.add_done_callback(self._done.put)
                    if not under_way:
                        return
                    started = time.monotonic()
                    came = self._next(under_way)
                    self._thread_seconds += (time.monotonic() - started) * max(n_threads, 1)
                    self._n_done += len(came)
                    for future, outcome in came:
                        yield under_way.pop(future), outcome
            finally:
                # A scheduler that is gone has nothing left to cancel.
                with suppress(TimeoutError, OSError, CommClosedError, ClosedClientError):
                    self._cancel([future for future in under_way if not future.done()])

    def _next(self, under_way: Iterable[Future[Any]]) -> list[tuple[Future[Any], Any]]:
        """Take what is done; if nothing is for too long, what may be the cause of it."""
        try:
            batch = {self._done.get(timeout=self._patience)}
            with suppress(Empty):
                while True:
                    batch.add(self._done.get_nowait())
            mine = batch.intersection(under_way)
            came = list(self._gathered(mine).items())
        except (Empty, TimeoutError):
            return [(future, SetAside(why="nothing was done")) for future in self._stuck(under_way)]
        self._in_vain = False
        return came

    def _gathered(self, batch: set[Future[Any]]) -> dict[Future[Any], Any]:
        """Results of futures that are done, in one request for all of them."""
        futures = dict(enumerate(batch))

        async def gather() -> dict[int, Any]:
            found: dict[int, Any] = await self._client.gather(
                futures, errors="skip", asynchronous=True
            )
            return found

        try:
            found = self._sync(gather, seconds=self._patience)
        except TimeoutError:
            for future in batch:
                self._done.put(future)
            raise
        outcomes = {}
        for number, future in futures.items():
            failed = future.status in ("error", "cancelled")
            outcomes[future] = _suspicion(future) if failed else found[number]
        return outcomes

    def _stuck(self, under_way: Iterable[Future[Any]]) -> list[Future[Any]]:
        """Restart all workers; what they were at is set aside, one of it may hold up the rest."""
        try:
            held = self._ask("processing").values()
            at_work = {key for keys in held for key in keys}
            known = self._ask("identity", n_workers=-1)["workers"]
            stuck = [future for future in under_way if future.key in at_work]
            self._cancel(stuck)
        except TimeoutError as error:
            raise ClusterError(
                f"the scheduler has not answered for {ANSWER_SECONDS} seconds; nothing was "
                "published, the same command starts again"
            ) from error
        if self._in_vain:
            raise ClusterError(
                f"twice no task was done within {self._patience:g} seconds, and none was at work "
                f"on {len(known)} workers; look at them, or at their scheduler"
            )
        self._in_vain = not stuck
        workers = [address for address, worker in known.items() if worker["nanny"]]
        self._client.restart_workers(workers, timeout=RESTART_SECONDS, raise_for_error=False)
        return stuck

    def _cancel(self, futures: list[Future[Any]]) -> None:
        async def cancel() -> None:
            await self._client.cancel(futures, asynchronous=True)

        if futures:
            self._sync(cancel)

    def _ask(self, question: str, **arguments: Any) -> Any:
        """Ask the scheduler something."""
        return self._sync(getattr(self._client.scheduler, question), **arguments)

    def _sync(
        self,
        call: Callable[..., Awaitable[Answer]],
        *,
        seconds: float = ANSWER_SECONDS,
        **arguments: Any,
    ) -> Answer:
        """Wait for the client, but not for ever."""
        answer: Answer = self._client.sync(call, callback_timeout=seconds, **arguments)
        return answer


def _suspicion(future: Future[Any]) -> SetAside:
    """Set a task aside that may be what ends its workers; any other error is its own."""
    error = future.exception(timeout=ANSWER_SECONDS)
    if isinstance(error, KilledWorker):
        return SetAside(why="its workers died")
    if isinstance(error, MemoryError):
        return SetAside(why="it ran out of memory")
    raise error


@contextmanager
def _cluster_errors() -> Iterator[None]:
    """Turn the cluster's own failures into one line."""
    try:
        yield
    except (ClosedClientError, CommClosedError, FutureCancelledError, TimeoutError) as error:
        raise ClusterError(
            "the scheduler went away while work was under way; nothing was published, the same "
            "command continues with another scheduler or without --scheduler"
        ) from error
