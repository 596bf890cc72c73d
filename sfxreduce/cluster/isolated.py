"""One call in a process of its own: whatever it does to that process, it does to nothing else.

A worker that dies says little about its task: it may have been killed from outside, or by another
task. Here the worker outlives the process and tells how it ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
from distributed import get_worker
from distributed.protocol import pickle

from sfxreduce.errors import ClusterError
from sfxreduce.io.process import NotStarted, ProcessFailed, call_in_process

__all__ = ["Alone", "Failed"]

MEMORY_SHARE = 0.95
"""Of the worker's memory, as Dask itself allows its workers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A call that its process did not live to answer, in words: "was ended by SIGKILL"."""

    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """A call to be made in a process of its own, by a worker.

    Parameters
    ----------
    seconds : float
        In which it has to end, from when the process is ready.
    """

    function: Callable[[Any], Any]
    seconds: float

    def __call__(self, item: Any) -> tuple[Any] | Failed:
        """Make the call on an item.

        Returns
        -------
        tuple of result, or Failed
            A tuple, so that no result is taken for a failure.

        Raises
        ------
        ClusterError
            If the process does not even start.
        Exception
            Whatever the function raised; a lack of memory is a failure.
        """
        limit = get_worker().memory_manager.memory_limit
        memory_bytes = limit * MEMORY_SHARE if limit else psutil.virtual_memory().total
        call = pickle.dumps((self.function, item))
        try:
            return (call_in_process(call, seconds=self.seconds, memory_bytes=memory_bytes),)
        except NotStarted as error:
            raise ClusterError(f"a task's own process {error}; is the machine busy?") from error
        except ProcessFailed as error:
            return Failed(why=str(error))
