"""Open a pool, whichever is asked for, and close it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    scheduler, scheduler_file : str and Path, optional
        Address of a running Dask scheduler, as ``tcp://127.0.0.1:8786``, or a file that names it.
    cluster : str
        Who starts workers: ``local`` (this machine, as if nothing is given), ``slurm``, or the path
        of a TOML file with what jobs of SLURM ask for, see `sfxreduce.SlurmProfile`.
    n_workers : int
        Worker processes on this machine, reached at 127.0.0.1 only; 0 for one per processor.
    jobs, jobs_max : int
        Jobs of SLURM that are kept up, and how many there may be; 0 for what the profile says.
    gpu : bool
        Whether the workers of this machine offer the resource ``GPU``.
    security : Path, optional
        Certificates, see `read_security`; needed for a scheduler on another machine.
    patience_seconds, drop_bad_workers, tell
        How workers are treated, see `sfxreduce.cluster.dask_pool.DaskPool`.

    Raises
    ------
    UsageError
        If two places for the work are asked for, or a profile or certificates are none.
    RefusedError
        If the connection to another machine would not be encrypted, or others can read the key or
        write to the scheduler's file.
    ClusterError
        If the scheduler or SLURM does not answer.
    """
    _check_one(serial=serial, scheduler=scheduler, scheduler_file=scheduler_file, cluster=cluster)
    if serial and security:
        raise UsageError("--serial talks to nobody; drop --serial or --security")
    if serial:
        yield SerialPool()
        return
    profile = batch_profile(cluster, jobs=jobs, jobs_max=jobs_max, n_workers=n_workers)
    which = {"profile": profile, "n_workers": n_workers, "gpu": gpu, "security": security}
    how = {"patience_seconds": patience_seconds, "drop_bad_workers": drop_bad_workers}
    with _workers(scheduler or scheduler_file, which, how | {"tell": tell}) as pool:
        yield pool


@contextmanager
def _workers(
    scheduler: str | Path | None, which: Mapping[str, Any], how: Mapping[str, Any]
) -> Iterator[Pool]:
    """Pool of the workers of a scheduler, which may be named by a file, or of a cluster."""
    if not how["patience_seconds"] > 0:
        raise UsageError(
            f"expected a patience of more than 0 seconds, found {how['patience_seconds']}"
        )
    from sfxreduce.cluster.dask_pool import Where, open_dask_pool  # half a second

    if isinstance(scheduler, Path):
        from sfxreduce.cluster.scheduler_file import scheduler_in

        scheduler = scheduler_in(scheduler)
    with open_dask_pool(Where(scheduler=scheduler or "", **which), **how) as pool:
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
