"""Open a pool, whichever is asked for, and close it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfxreduce.cluster.pool import PATIENCE_SECONDS, Pool, SerialPool, unheard
from sfxreduce.errors import UsageError

if TYPE_CHECKING:
    from sfxreduce.cluster.slurm.profile import SlurmProfile

__all__ = ["LOCAL", "batch_profile", "open_pool"]

LOCAL = "local"
"""Name of the cluster that a command starts on its machine."""


@contextmanager
def open_pool(
    *,
    serial: bool = False,
    scheduler: str = "",
    scheduler_file: Path | None = None,
    cluster: str = "",
    n_workers: int = 0,
    jobs: int = 0,
    jobs_max: int = 0,
    gpu: bool = False,
    security: Path | None = None,
    patience_seconds: float = PATIENCE_SECONDS,
    drop_bad_workers: bool = False,
    tell: Callable[[str], None] = unheard,
) -> Iterator[Pool]:
    """Open a pool and close it with the block.

    Parameters
    ----------
    serial : bool
        Work in this process.
    scheduler : str
        Address of a running Dask scheduler, as ``tcp://127.0.0.1:8786``.
    scheduler_file : Path, optional
        File in which a running scheduler says where it is.
    cluster : str
        Who starts workers: ``local``, which is this machine, ``slurm``, or the path of a TOML file
        with what jobs of SLURM ask for, see `sfxreduce.SlurmProfile`.
    n_workers : int
        Worker processes on this machine, reached at 127.0.0.1 only; 0 for one per processor.
    jobs, jobs_max : int
        Jobs of SLURM that are kept up, and up to which there are more where the work is worth it;
        0 for what the profile says.
    gpu : bool
        Whether the workers of that cluster offer the resource ``GPU``.
    security : Path, optional
        Certificates, see `read_security`; needed for a scheduler on another machine.
    patience_seconds : float
        Without any task done, after which workers are restarted.
    drop_bad_workers : bool
        Do without workers that fail the roll call; else the work stops.
    tell : callable
        Given a line about each worker that is lost, retired or done without.

    Raises
    ------
    UsageError
        If two of serial, scheduler, scheduler file and cluster are asked for, or a profile or
        certificates are none.
    RefusedError
        If the connection to another machine would not be encrypted, or others can read the key or
        write to the scheduler's file.
    ClusterError
        If the scheduler or SLURM does not answer.
    """
    _check_one(serial=serial, scheduler=scheduler, scheduler_file=scheduler_file, cluster=cluster)
    if serial and security:
        raise UsageError("--serial talks to nobody; drop --serial or --security")
    if not patience_seconds > 0:
        raise UsageError(f"expected a patience of more than 0 seconds, found {patience_seconds}")
    if serial:
        yield SerialPool()
        return
    from sfxreduce.cluster.dask_pool import Where, open_dask_pool  # half a second

    address = scheduler
    if scheduler_file is not None:
        from sfxreduce.cluster.scheduler_file import scheduler_in

        address = scheduler_in(scheduler_file)
    profile = batch_profile(cluster, jobs=jobs, jobs_max=jobs_max, n_workers=n_workers)
    where = Where(
        scheduler=address, profile=profile, n_workers=n_workers, gpu=gpu, security=security
    )
    how: dict[str, Any] = {"drop_bad_workers": drop_bad_workers, "tell": tell}
    with open_dask_pool(where, patience_seconds=patience_seconds, **how) as pool:
        yield pool


def batch_profile(
    cluster: str, *, jobs: int = 0, jobs_max: int = 0, n_workers: int = 0
) -> SlurmProfile | None:
    """What jobs ask for; None where workers are no jobs.

    Raises
    ------
    UsageError
        If the profile is none, or options are given that mean nothing to it.
    """
    if cluster in ("", LOCAL):
        if jobs or jobs_max:
            raise UsageError(
                "--jobs and --jobs-max are for jobs of SLURM; add --cluster slurm, or give "
                "--workers in their place"
            )
        return None
    if n_workers:
        raise UsageError(
            f"--workers is for this machine, and --cluster {cluster} for others; drop one of "
            "them, or give --jobs in its place"
        )
    from sfxreduce.cluster.slurm.profile import profile_of

    return profile_of(cluster, jobs=jobs, jobs_max=jobs_max)


def _check_one(**asked: object) -> None:
    """Refuse several places for the work."""
    given = [f"--{name.replace('_', '-')}" for name, value in asked.items() if value]
    if len(given) > 1:
        raise UsageError(f"{given[0]} and {given[1]} exclude each other; drop one of them")
