"""The web server of a cluster's dashboard: pages of ours beside those of Dask, and who did what."""

from __future__ import annotations

import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from distributed import Client, Scheduler
from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import IOLoop

if TYPE_CHECKING:
    from bokeh.server.tornado import BokehTornado

__all__ = ["Dashboard", "dashboard_of"]

RECENT_SECONDS = 30.0
"""Over which the pace of a worker is measured."""

MOST_TASKS = 10_000
"""That are remembered: more than are done meanwhile."""


class Dashboard:
    """A dashboard whose scheduler is in this process; made by `dashboard_of`."""

    def __init__(self, client: Client, scheduler: Scheduler) -> None:
        self._client, self._scheduler = client, scheduler
        self._counter = _TasksDone()
        self._client.sync(self._count)

    @property
    def address(self) -> str:
        """Address of its server, as ``http://127.0.0.1:8787``."""
        server: Any = self._scheduler.http_server  # Dask adds the two to it
        return f"http://{server.address}:{server.port}"

    def add(self, pages: BokehTornado) -> None:
        """Serve pages until the cluster is closed."""
        self._client.sync(self._add, pages)

    def tasks_each_second(self, name: str) -> dict[str, float]:
        """Tasks whose name begins like this that each worker did in a second, lately.

        In the last half a minute of such tasks, which may be over.
        """
        return self._counter.each_second(name)

    async def _count(self) -> None:
        self._scheduler.add_plugin(self._counter)

    async def _add(self, pages: BokehTornado) -> None:
        self._scheduler.http_application.add_application(pages)
        pages.initialize(IOLoop.current())
        pages.start()


def dashboard_of(client: Client) -> Dashboard | None:
    """Dashboard of a client's cluster; None if its scheduler is elsewhere, or serves none."""
    scheduler = getattr(client.cluster, "scheduler", None)
    if isinstance(scheduler, Scheduler) and hasattr(scheduler, "http_server"):
        return Dashboard(client, scheduler)
    return None


class _TasksDone(SchedulerPlugin):
    """Takes note of who did which task, and when."""

    def __init__(self) -> None:
        self._done: deque[tuple[float, str, str]] = deque(maxlen=MOST_TASKS)
        self._begun = time.monotonic()

    def transition(
        self, key: Any, start: str, finish: str, *_: Any, worker: str = "", **__: Any
    ) -> None:
        """See `distributed.diagnostics.plugin.SchedulerPlugin.transition`."""
        if start == "processing" and finish == "memory":
            name = key[0] if isinstance(key, tuple) else key
            self._done.append((time.monotonic(), str(name), worker))

    def each_second(self, name: str) -> dict[str, float]:
        those = [(at, worker) for at, task, worker in tuple(self._done) if task.startswith(name)]
        if not those:
            return {}
        last = those[-1][0]
        first = max(self._begun, last - RECENT_SECONDS)
        counts = Counter(worker for at, worker in those if at >= first)
        return {worker: count / max(last - first, 1.0) for worker, count in counts.items()}
