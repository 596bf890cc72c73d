"""``sfxreduce cluster``: what workers are made of and see, before there is work for them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sfxreduce.cluster.open import batch_profile
from sfxreduce.cluster.pool import Needs
from sfxreduce.errors import RefusedError, UsageError
from sfxreduce.pipeline.stages.settings import needs_of
from sfxreduce.run.run import Run
from sfxreduce.scorers.cnn.folder import default_model
from sfxreduce.scorers.cnn.scorer import CnnScorer

__all__ = ["ClusterFindings", "cluster_check", "cluster_script"]


class CheckedPool(Protocol):
    """A pool of workers that others can look at; see `sfxreduce.cluster.dask_pool.DaskPool`."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Who the workers are."""
        ...

    def await_workers(self, seconds: float) -> int:
        """Wait for all workers that there should be, and return how many these are."""
        ...

    def needing(self, needs: Needs) -> AbstractContextManager[None]:
        """Call the roll for what a block needs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFindings:
    """What came of a roll call.

    Parameters
    ----------
    scheduler : str
        Its address.
    workers : tuple of mapping
        For each its ``name``, ``address``, ``state`` (``admitted`` or ``dropped``), ``why``, and
        what it reported.
    jobs : tuple of str
        Numbers of the jobs of SLURM that were submitted.
    expected : int
        Workers that there should be; those that had not come are in no other number.
    """

    scheduler: str
    workers: tuple[Mapping[str, Any], ...]
    jobs: tuple[str, ...] = ()
    expected: int = 0

    @property
    def bad(self) -> tuple[Mapping[str, Any], ...]:
        """Workers that would get no task."""
        return tuple(worker for worker in self.workers if worker["state"] != "admitted")

    @property
    def ok(self) -> bool:
        """Whether all workers that there should be are there, and may have tasks."""
        return bool(self.workers) and not self.bad and len(self.workers) >= self.expected

    def to_json(self) -> dict[str, Any]:
        """As ``--json`` tells it."""
        return {
            "ok": self.ok,
            "scheduler": self.scheduler,
            "jobs": list(self.jobs),
            "expected": self.expected,
            "workers": list(self.workers),
        }


def cluster_check(
    pool: CheckedPool,
    run: Run | None = None,
    *,
    folder: Path | None = None,
    model: Path | None = None,
    wait_seconds: float = 0.0,
) -> ClusterFindings:
    """Call the roll of a pool's workers, as `filter_run` does before its first task.

    Parameters
    ----------
    pool : CheckedPool
        Opened with ``drop_bad_workers=True``: all workers are heard then, not the first bad one.
    run : Run, optional
        That workers have to see; without one, only what they are made of is compared.
    folder : Path, optional
        Where outputs will be made: workers have to read and write there.
    model : Path, optional
        Folder of the model; the shipped one if not given.
    wait_seconds : float
        For all jobs of a batch system to begin; those that have are asked then.

    Raises
    ------
    ClusterError
        If no worker answers.
    UsageError
        If all work is done in this process.
    """
    expected = pool.await_workers(wait_seconds)
    # That none is left is told worker by worker.
    with suppress(RefusedError), pool.needing(_needs(run, folder, model)):
        pass
    told = pool.facts["cluster"]
    return ClusterFindings(
        expected=max(expected, len(told["workers"])),
        scheduler=told["scheduler"],
        workers=tuple(told["workers"]),
        jobs=tuple(told.get("jobs", ())),
    )


def _needs(run: Run | None, folder: Path | None, model: Path | None) -> Needs:
    model = model or default_model()
    if run is None:
        return Needs(folder=folder, model=model)
    return needs_of(run, CnnScorer(model, device="cpu"), folder)


def cluster_script(cluster: str, *, jobs: int = 0, jobs_max: int = 0) -> str:
    """Write the script of a job as it would be submitted; nothing is started.

    Parameters
    ----------
    cluster, jobs, jobs_max
        See `open_pool`.

    Returns
    -------
    str
        With names in capitals for what is only known once there is a scheduler.

    Raises
    ------
    UsageError
        If the profile is none, or dask-jobqueue is not installed.
    """
    profile = batch_profile(cluster, jobs=jobs, jobs_max=jobs_max)
    if profile is None:
        raise UsageError(
            "--cluster local has no jobs, and no script; give --cluster slurm or a profile"
        )
    from sfxreduce.cluster.slurm.cluster import example_script  # needs an extra

    return example_script(profile)
