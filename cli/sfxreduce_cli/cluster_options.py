"""Options that say where the work runs, and the pool that they stand for."""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict
from urllib.parse import urlsplit

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.output import say
from sfxreduce_cli.pool_on_demand import PoolOnDemand
from sfxreduce_cli.progress import ProgressDisplay

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.report.live.so_far import RunSoFar

__all__ = ["POOL", "Jobs", "JobsMax", "PoolOptions", "WhoStarts", "tunnel"]

POOL = "Where the work runs"
LOCAL = "local"

ADDRESS = "DASK_SCHEDULER_ADDRESS"
SCHEDULER_FILE = "DASK_SCHEDULER_FILE"


WhoStarts = Annotated[
    str,
    typer.Option(
        metavar="local|slurm|FILE",
        help="Who starts workers: this machine, or SLURM, by its defaults or by a profile, "
        "FILE.toml; default: local.",
        rich_help_panel=POOL,
    ),
]
Jobs = Annotated[
    int,
    typer.Option(min=0, help="Jobs of SLURM; 0 for what the profile says.", rich_help_panel=POOL),
]
JobsMax = Annotated[
    int,
    typer.Option(
        min=0,
        help="Most jobs of SLURM, sent while what is left is worth them; 0 for what the profile "
        "says.",
        rich_help_panel=POOL,
    ),
]


class Work(TypedDict):
    """Where the work runs, and who is shown its progress."""

    pool: PoolOnDemand
    progress: ProgressDisplay


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolOptions:
    """Where the work runs."""

    serial: Annotated[
        bool, typer.Option("--serial", help="Do all work in this process.", rich_help_panel=POOL)
    ] = False
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="A running Dask scheduler; default: DASK_SCHEDULER_ADDRESS, if set.",
            rich_help_panel=POOL,
        ),
    ] = ""
    scheduler_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What 'dask scheduler --scheduler-file' writes; default: DASK_SCHEDULER_FILE, if "
            "set.",
            rich_help_panel=POOL,
        ),
    ] = None
    cluster: WhoStarts = ""
    jobs: Jobs = 0
    jobs_max: JobsMax = 0
    security: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Certificates for a tls:// scheduler: a folder with tls-ca.pem, tls-cert.pem and "
            "tls-key.pem, or a TOML file with the paths ca, cert and key.",
            rich_help_panel=POOL,
        ),
    ] = None
    workers: Annotated[
        int,
        typer.Option(
            min=0,
            help="Worker processes on this machine; 0 for one per processor, started only if that "
            "saves time.",
            rich_help_panel=POOL,
        ),
    ] = 0
    drop_bad_workers: Annotated[
        bool,
        typer.Option(
            "--drop-bad-workers",
            help="Continue without workers that fail the roll call: other code, or another view of "
            "the run.",
            rich_help_panel=POOL,
        ),
    ] = False

    @property
    def _is_said(self) -> bool:
        """Whether the command line says where the work runs, whatever the environment does."""
        return bool(self.serial or self.scheduler or self.scheduler_file or self.cluster)

    @property
    def address(self) -> str:
        """Address of a running scheduler, which the environment may name, as for Dask itself."""
        return self.scheduler or ("" if self._is_said else os.environ.get(ADDRESS, ""))

    @property
    def file(self) -> Path | None:
        """File of a running scheduler, which the environment may name, too."""
        if self._is_said or self.address:
            return self.scheduler_file
        named = os.environ.get(SCHEDULER_FILE, "")
        return Path(named) if named else None

    @property
    def is_elsewhere(self) -> bool:
        """Whether workers are not those of this machine."""
        return bool(self.address or self.file or self.cluster not in ("", LOCAL))

    def check_linger(self, seconds: float) -> None:
        """Refuse to keep pages that there are none of."""
        if seconds and self.serial:
            raise UsageError("--linger: there are no pages with --serial; drop one of them")

    def _starting(self, *, gpu: bool) -> str:
        """What is said before workers are there; nothing where there are none."""
        if self.serial:
            return ""
        if self.address or self.file:
            return f"connecting to {self.address or self.file}"
        if self.cluster not in ("", LOCAL):
            return "sending jobs to SLURM"
        if gpu and not self.workers:
            return "starting a worker on each graphics card"
        n_workers = self.workers or len(os.sched_getaffinity(0))
        return f"starting {n_workers} worker{'' if n_workers == 1 else 's'}"

    @contextmanager
    def opened(self, *, gpu: bool = False, small_here: bool = False) -> Iterator[Work]:
        """Pool, opened when it is first needed, and a display of progress.

        Parameters
        ----------
        small_here : bool
            Begin in this process, where what is read can end none and nobody asked for workers.
        """
        patience = _patience_of_environment()
        how = {"jobs": self.jobs, "jobs_max": self.jobs_max, "n_workers": self.workers}
        sfxreduce.batch_profile(self.cluster, **how)  # refused before anything is read
        asked = self.serial or self.is_elsewhere or self.workers or gpu
        small_here = small_here and not asked
        with ExitStack() as stack:

            def workers() -> Pool:
                if starting := self._starting(gpu=gpu):
                    say(starting)
                pool = stack.enter_context(
                    sfxreduce.open_pool(
                        serial=self.serial,
                        scheduler=self.address,
                        scheduler_file=self.file,
                        cluster=self.cluster,
                        **how,
                        gpu=gpu,
                        security=self.security,
                        drop_bad_workers=self.drop_bad_workers,
                        tell=_warn_of_worker,
                        **patience,
                    )
                )
                if pool.dashboard:
                    say(f"dashboard: {pool.dashboard}")
                display.show_page(partial(_show_page, stack, pool))
                return pool

            def opened() -> Pool:
                if not small_here:
                    return workers()
                growing = sfxreduce.GrowingPool(workers)
                stack.callback(growing.close)
                return growing

            with ProgressDisplay(page=not self.serial) as display:
                on_demand = PoolOnDemand(opened, has_gpu=None if self.is_elsewhere else gpu)
                yield {"pool": on_demand, "progress": display}


def tunnel(dashboard: str) -> str:
    """Command that brings a dashboard on this machine to that of a user who is logged in to it."""
    parts = urlsplit(dashboard)
    if parts.hostname != "127.0.0.1" or not {"SSH_CONNECTION", "SLURM_JOB_ID"} & set(os.environ):
        return ""
    port = f"{parts.port}:127.0.0.1:{parts.port}"
    user = "USER"
    with suppress(OSError, KeyError):  # in some containers a user has no name
        user = getpass.getuser()
    return f"ssh -N -L {port} {user}@{socket.getfqdn()}"


def _warn_of_worker(line: str) -> None:
    say(f"sfxreduce: warning: {line}")


def _show_page(stack: ExitStack, pool: Pool, so_far: RunSoFar) -> None:
    """Serve the page of a run until the stack is closed, and say where."""
    page = stack.enter_context(_page_of(pool, so_far))
    say(f"this run: {page}")
    if there := tunnel(page):
        say(f"from your own machine: {there}")


@contextmanager
def _page_of(pool: Pool, so_far: RunSoFar) -> Iterator[str]:
    """Serve the page of a run as long as the block lasts; gives its address."""
    dashboard = pool.dashboard_here
    if dashboard is not None:
        so_far.tasks_each_second = partial(dashboard.tasks_each_second, "score")
    with sfxreduce.served_run_page(so_far, dashboard) as address:
        yield address


def _patience_of_environment() -> dict[str, Any]:
    """How long nothing may be done before workers are restarted, if the environment says so."""
    seconds = os.environ.get("SFXREDUCE_PATIENCE_SECONDS")
    try:
        return {"patience_seconds": float(seconds)} if seconds else {}
    except ValueError:
        raise UsageError(
            f"SFXREDUCE_PATIENCE_SECONDS: expected a number of seconds, found '{seconds}'"
        ) from None
