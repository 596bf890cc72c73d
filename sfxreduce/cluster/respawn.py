"""Workers of this machine are kept in number, whatever happens to them.

Dask starts a worker again that dies at work. One that dies while it starts is lost for good: its
nanny gives up, and a run would end with fewer and fewer workers, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dask.config
from distributed import SpecCluster, Status
from tornado.ioloop import PeriodicCallback

from sfxreduce.errors import ClusterError

__all__ = ["kept_in_number"]

LOOK_SECONDS = 1
LONGEST_PAUSE = 60
"""Looks to wait before another try, where workers cannot be started at all."""


@contextmanager
def kept_in_number(cluster: SpecCluster) -> Iterator[None]:
    """Put a new worker in the place of each one that is lost, as long as the block lasts."""
    # Dask would close a worker that takes longer to come back, and again the one in its place.
    never = dask.config.set({"distributed.deploy.lost-worker-timeout": "1000 days"})
    looks, loop = PeriodicCallback(_Keeper(cluster).look, 1000 * LOOK_SECONDS), cluster.loop
    if loop is None:
        raise ClusterError("the cluster of this machine was not started")
    loop.add_callback(looks.start)
    try:
        with never:
            yield
    finally:
        loop.add_callback(looks.stop)


class _Keeper:
    def __init__(self, cluster: SpecCluster) -> None:
        self._cluster = cluster
        self._in_vain = self._pause = 0

    async def look(self) -> None:
        """Replace workers that will not come back by themselves."""
        cluster = self._cluster
        self._pause -= 1
        if cluster.status != Status.running or self._pause > 0:
            return
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        if not set(cluster.worker_spec) - set(cluster.workers):
            return
        self._in_vain += 1
        # Some are killed while they start; the next look sees to that.
        with suppress(Exception):
            # This starts what is missing.
            await cluster
            self._in_vain = 0
        self._pause = min(self._in_vain, LONGEST_PAUSE)
