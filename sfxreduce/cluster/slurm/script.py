"""The script of a job: what it asks SLURM for, and the worker that it starts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sfxreduce.cluster.local import KEPT_BY_WORKERS
from sfxreduce.cluster.slurm.profile import SlurmProfile
from sfxreduce.errors import UsageError

__all__ = ["job_script"]

DEATH_SECONDS = 60
"""After which a worker that finds no scheduler ends, and its job with it."""


def job_script(
    profile: SlurmProfile, *, name: str, worker: str, scheduler: str, certificates: dict[str, str]
) -> str:
    """Write the script of a job.

    Parameters
    ----------
    name : str
        Of all jobs of a command.
    worker : str
        Name of the job's worker, or of its workers but for their number.
    scheduler : str
        Address, as ``tls://10.0.0.7:40123``.
    certificates : dict of str to str
        Paths of "ca", "cert" and "key", on a file system that the nodes see.

    Raises
    ------
    UsageError
        If dask-jobqueue is not installed.
    """
    try:
        with _handlers_kept():
            from dask_jobqueue.slurm import SLURMJob
    except ImportError as error:
        raise UsageError(
            "--cluster: jobs of SLURM need dask-jobqueue, which is not installed; "
            "pip install 'sfxreduce[slurm]'"
        ) from error
    job = SLURMJob(
        scheduler,
        worker,
        queue=profile.partition,
        account=profile.account,
        walltime=profile.walltime,
        cores=profile.cores,
        memory=profile.memory,
        processes=profile.workers_a_job,
        interface=profile.interface,
        death_timeout=DEATH_SECONDS,
        local_directory=profile.local_directory,
        python=profile.python,
        job_name=name,
        job_script_prologue=[*_kept(), *profile.prologue],
        job_extra_directives=_directives(profile, name),
        worker_extra_args=_options(profile, certificates),
    )
    return str(job.job_script())


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Undo what an import does to Ctrl-C: dask-jobqueue has it end with exit status 0."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _kept() -> list[str]:
    """Memory that workers keep, as those of this machine; what is set already is stronger."""
    return [f'export {name}="${{{name}:-{value}}}"' for name, value in KEPT_BY_WORKERS.items()]


def _directives(profile: SlurmProfile, name: str) -> list[str]:
    log = profile.shared_folder / name / "job-%j.log"
    # One that is started again would do so under a name that has been replaced.
    asked = [f"--output={log}", f"--error={log}", "--no-requeue"]
    if profile.constraint:
        asked.append(f"--constraint={profile.constraint}")
    if profile.gpus:
        asked.append(f"--gres=gpu:{profile.gpus}")
    return asked


def _options(profile: SlurmProfile, certificates: dict[str, str]) -> list[str]:
    """Options of ``dask worker``; the last of two that are the same counts."""
    options = ["--nthreads", "1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0"]
    options += ["--lifetime", f"{profile.lifetime_seconds:.0f}s"]
    options += ["--lifetime-stagger", f"{profile.stagger_seconds:.0f}s"]
    if profile.gpus:
        options += ["--resources", "GPU=1"]
    for kind, option in (("ca", "--tls-ca-file"), ("cert", "--tls-cert"), ("key", "--tls-key")):
        options += [option, str(Path(certificates[kind]))]
    return options
