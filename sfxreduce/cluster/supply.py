"""Workers that are still to come, and how much work there is for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["NO_SUPPLY", "Outlook", "Supply", "jobs_wanted"]

WORTH_SECONDS = 60.0
"""Of work that a worker should find: a job has to be scheduled, and its Python loaded."""

WORTH_TASKS = 4
"""Tasks that a worker should find, however long they take: the last ones are waited for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is left of a stage. Its tasks have about as many events each.

    Parameters
    ----------
    tasks_left : int
        Not done yet.
    seconds_a_task : float
        That a thread takes for one, judged by those that are done; 0 if none is.
    """

    tasks_left: int = 0
    seconds_a_task: float = 0.0


class Supply(Protocol):
    """Where more workers come from."""

    @property
    def offers_gpu(self) -> bool:
        """Whether its workers offer the resource ``GPU``."""
        ...

    @property
    def facts(self) -> dict[str, Any]:
        """What ``--json`` tells of it."""
        ...

    def await_all(self, seconds: float) -> int:
        """Wait for all workers, but not for longer; return how many there should be."""
        ...

    def is_coming(self) -> bool:
        """Whether somebody sees to it that workers come."""
        ...

    def check(self) -> None:
        """Stop the work if no more will come.

        Raises
        ------
        ClusterError
            In one line, with the cause.
        """
        ...

    def expect(self, outlook: Outlook) -> None:
        """Take note of how much work there is."""
        ...

    def attach(self, wake: Callable[[], None]) -> None:
        """Have something called when `check` has something to say."""
        ...


class _NoSupply:
    """The workers are those that are there."""

    offers_gpu = False

    @property
    def facts(self) -> dict[str, Any]:
        return {}

    def await_all(self, seconds: float) -> int:  # noqa: ARG002 - nobody comes
        return 0

    def is_coming(self) -> bool:
        return False

    def check(self) -> None:
        pass

    def expect(self, outlook: Outlook) -> None:
        pass

    def attach(self, wake: Callable[[], None]) -> None:
        pass


NO_SUPPLY: Supply = _NoSupply()
"""Of pools whose workers somebody else looks after."""


def jobs_wanted(outlook: Outlook, *, jobs: int, jobs_max: int, workers_a_job: int) -> int:
    """How many jobs are worth it for what is left to do.

    Parameters
    ----------
    jobs, jobs_max : int
        Fewest and most.

    Examples
    --------
    >>> few = {"jobs": 1, "jobs_max": 100, "workers_a_job": 1}
    >>> jobs_wanted(Outlook(tasks_left=57, seconds_a_task=30.0), **few)
    15
    >>> jobs_wanted(Outlook(tasks_left=57, seconds_a_task=2.0), **few)
    2
    """
    seconds = outlook.tasks_left * outlook.seconds_a_task
    workers = min(
        math.ceil(seconds / WORTH_SECONDS),
        math.ceil(outlook.tasks_left / WORTH_TASKS) if seconds else 0,
    )
    return max(jobs, min(jobs_max, math.ceil(workers / workers_a_job)))
