"""A pool that opens when the first task needs it, so that what is refused costs no start."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import sfxreduce
from sfxreduce.errors import UsageError

if TYPE_CHECKING:
    import dask.array as da

    from sfxreduce.cluster import Pool
    from sfxreduce.cluster.dashboard import Dashboard
    from sfxreduce.cluster.pool import Needs, NeedsToCome

__all__ = ["PoolOnDemand"]


class PoolOnDemand:
    """A `sfxreduce.cluster.Pool` behind a call that opens it.

    Parameters
    ----------
    open_pool : callable
        Called once, when it is first needed.
    has_gpu : bool, optional
        Whether any of its workers offers a GPU, where that is known before it is open.
    """

    def __init__(
        self,
        open_pool: Callable[[], Pool],
        *,
        has_gpu: bool | None,
    ) -> None:
        self._open_pool = open_pool
        self._has_gpu = has_gpu
        self._to_come: NeedsToCome | None = None

    @cached_property
    def _pool(self) -> Pool:
        # Known before it is asked: where that is refused it is open all the same.
        self.__dict__["_pool"] = pool = self._open_pool()
        if self._to_come is not None:
            self._to_come.ask(pool)
        return pool

    def needing(self, needs: Needs) -> AbstractContextManager[None]:
        """Say what tasks of a block need. See `Pool.needing`."""
        self._to_come = sfxreduce.NeedsToCome()
        return self._to_come.of(needs, self.__dict__.get("_pool"))

    @property
    def facts(self) -> Mapping[str, Any]:
        """Who did the work, as ``--json`` tells it; nothing of this process, or where none was."""
        facts: Mapping[str, Any] = getattr(self.__dict__.get("_pool"), "facts", {})
        return facts

    def await_workers(self, seconds: float) -> int:
        """Wait for all workers; see `sfxreduce.cluster.dask_pool.DaskPool.await_workers`."""
        await_workers = getattr(self._pool, "await_workers", None)
        if await_workers is None:
            raise UsageError("--serial has no workers to check; drop it")
        n_workers: int = await_workers(seconds)
        return n_workers

    @property
    def dashboard(self) -> str:
        """Address of the dashboard. See `Pool.dashboard`."""
        return self._pool.dashboard

    @property
    def dashboard_here(self) -> Dashboard | None:
        """Dashboard that pages can be added to. See `Pool.dashboard_here`."""
        return self._pool.dashboard_here

    @property
    def has_gpu(self) -> bool:
        """Whether any worker offers the resource ``GPU``."""
        return self._pool.has_gpu if self._has_gpu is None else self._has_gpu

    def blocks(self, array: da.Array, **how: Any) -> Iterator[tuple[int, Any]]:
        """Compute an array block by block. See `Pool.blocks`."""
        return self._pool.blocks(array, **how)

    def map(self, *args: Any, **how: Any) -> Iterator[tuple[int, Any]]:
        """Call a function on each item. See `Pool.map`."""
        return self._pool.map(*args, **how)
