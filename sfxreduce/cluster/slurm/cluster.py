"""A scheduler in this process whose workers are jobs of SLURM."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import dask
from distributed import Client, Scheduler, SpecCluster
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.security import Security
from distributed.utils import get_ip, get_ip_interface

from sfxreduce.cluster.local import DASHBOARD, HOST, SCHEDULER
from sfxreduce.cluster.security import FILES, read_security
from sfxreduce.cluster.slurm.certificates import RunCertificates
from sfxreduce.cluster.slurm.jobs import Jobs
from sfxreduce.cluster.slurm.profile import SlurmProfile
from sfxreduce.cluster.slurm.script import job_script
from sfxreduce.errors import ClusterError, UsageError

__all__ = ["example_script", "slurm_cluster"]

LINK = "distributed.dashboard.link"

OF_DASK = {"ca": "ca_file", "cert": "cert", "key": "key"}
"""What Dask calls the files of a role."""


@contextmanager
def slurm_cluster(
    profile: SlurmProfile, *, security: Path | None, tell: Callable[[str], None]
) -> Iterator[tuple[Client, Jobs]]:
    """Start a scheduler and jobs; none of them is left when the block ends, however it does.

    Parameters
    ----------
    security : Path, optional
        Certificates, in place of those that are made for this command; the nodes have to see them.
    tell : callable
        Given one line about jobs that wait or end early.

    Raises
    ------
    UsageError
        If dask-jobqueue is not installed, or the interface is not one of this machine.
    ClusterError
        If SLURM is not here, or does not take a job.
    """
    if not shutil.which("sbatch"):
        raise ClusterError(
            "sbatch: no such program on this machine; work on a login node of a SLURM cluster, or "
            "drop --cluster"
        )
    name = f"sfxreduce-{uuid.uuid4().hex[:8]}"
    host = _host(profile.interface)
    with ExitStack() as stack:
        made = None
        if security is None:
            made = stack.enter_context(_certificates(profile, name))
            mine, paths = made.security, made.paths
        else:
            mine = read_security(security)
            paths = _paths_of(mine)
        cluster = stack.enter_context(_scheduler(host, mine))
        client = stack.enter_context(Client(cluster, security=mine))
        jobs = Jobs(
            profile,
            name=name,
            script=partial(_script, profile, name, str(cluster.scheduler_address), paths),
            there=partial(_n_workers, cluster),
            came=client.sync(_arrivals, cluster).so_far,
            certificates=made,
            tell=tell,
        )
        stack.callback(jobs.close)
        jobs.begin()
        yield client, jobs


def example_script(profile: SlurmProfile) -> str:
    """Script of a job as it would be submitted, with names in place of what is made by then.

    Raises
    ------
    UsageError
        If dask-jobqueue is not installed.
    """
    name = "sfxreduce-JOBS"
    folder = profile.shared_folder / name
    paths = {kind: str(folder / file) for kind, file in FILES.items()}
    return _script(profile, name, "tls://SCHEDULER:PORT", paths, f"{name}-1")


def _script(
    profile: SlurmProfile, name: str, scheduler: str, paths: dict[str, str], worker: str
) -> str:
    return job_script(profile, name=name, worker=worker, scheduler=scheduler, certificates=paths)


def _paths_of(security: Security) -> dict[str, str]:
    """Where certificates lie that a user gave."""
    files = security.get_tls_config_for_role("worker")
    return {kind: str(Path(files[of]).resolve()) for kind, of in OF_DASK.items()}


@contextmanager
def _certificates(profile: SlurmProfile, name: str) -> Iterator[RunCertificates]:
    """Certificates for as long as the block lasts; what jobs said stays if it ends badly."""
    folder = profile.shared_folder / name
    certificates = RunCertificates(folder, lifetime_seconds=profile.lifetime_seconds)
    went_well = False
    try:
        yield certificates
        went_well = True
    finally:
        certificates.remove(logs=went_well)


@contextmanager
def _scheduler(host: str, security: Security) -> Iterator[SpecCluster]:
    """Scheduler without workers, which nodes reach by TLS; its pages stay on this machine."""
    options = {
        "host": host,
        "protocol": "tls://",
        "security": security,
        "dashboard_address": DASHBOARD,
        "port": 0,
        **SCHEDULER,
    }
    link = str(dask.config.get(LINK)).replace("{host}", HOST)
    with (
        dask.config.set({LINK: link}),
        SpecCluster(
            workers={},
            scheduler={"cls": Scheduler, "options": options},
            security=security,
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


def _host(interface: str | None) -> str:
    """Address at which nodes reach this machine."""
    if interface is None:
        return str(get_ip())
    try:
        return str(get_ip_interface(interface))
    except ValueError as error:
        raise UsageError(f"--cluster: interface: expected one of this machine; {error}") from error


def _n_workers(cluster: SpecCluster) -> int:
    """How many workers a scheduler of this process has."""
    scheduler: Any = cluster.scheduler
    return len(scheduler.workers)


class _Arrivals(SchedulerPlugin):
    """Takes note of who came, however short the stay."""

    def __init__(self) -> None:
        self._names: set[str] = set()

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """See `distributed.diagnostics.plugin.SchedulerPlugin.add_worker`."""
        self._names.add(str(scheduler.workers[worker].name))

    def so_far(self) -> set[str]:
        """Names of all workers that have come."""
        return self._names.copy()


async def _arrivals(cluster: SpecCluster) -> _Arrivals:
    """Note who comes, from now on."""
    arrivals, scheduler = _Arrivals(), cast("Scheduler", cluster.scheduler)
    scheduler.add_plugin(arrivals)
    return arrivals
