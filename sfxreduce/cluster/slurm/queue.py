"""What is said to SLURM: submit a job, list those of one name, cancel some."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from sfxreduce.errors import ClusterError

__all__ = ["Queued", "cancel", "queued", "submit"]

COMMAND_SECONDS = 60
"""In which SLURM has to answer; a busy controller takes a while."""

OVER = frozenset({"CG", "CD", "CA", "F", "TO", "NF", "OOM", "PR", "DL", "BF", "RV"})
"""States of jobs that will not work any more, as squeue abbreviates them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Queued:
    """A job that SLURM knows.

    Parameters
    ----------
    state : str
        As ``PD`` or ``R``.
    reason : str
        Why it waits, in SLURM's words.
    """

    number: str
    state: str
    reason: str

    @property
    def waits(self) -> bool:
        """Whether it has not begun."""
        return self.state == "PD"


def submit(script: str) -> str:
    """Submit a job and return its number.

    Raises
    ------
    ClusterError
        If SLURM is not here, does not answer or refuses it.
    """
    return _told("sbatch", "--parsable", script=script).strip().partition(";")[0]


def queued(name: str) -> list[Queued]:
    """Jobs of a name that wait or run.

    Raises
    ------
    ClusterError
        If SLURM is not here or does not answer.
    """
    lines = _told("squeue", "--noheader", f"--name={name}", "--format=%i %t %r").splitlines()
    rows = [line.split(maxsplit=2) for line in lines if line.strip()]
    jobs = [Queued(number=row[0], state=row[1], reason=" ".join(row[2:])) for row in rows]
    return [job for job in jobs if job.state not in OVER]


def cancel(numbers: Sequence[str]) -> None:
    """Cancel jobs; those that are over already are no error.

    Raises
    ------
    ClusterError
        If SLURM is not here or does not answer.
    """
    if numbers:
        _told("scancel", "--quiet", *numbers)


def _told(program: str, *words: str, script: str | None = None) -> str:
    """What a command prints."""
    try:
        done = subprocess.run(  # noqa: S603 - programs of SLURM, by name
            [program, *words],
            input=script,
            stdin=None if script is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=COMMAND_SECONDS,
            start_new_session=True,  # Ctrl-C is for the command, which has jobs to cancel
        )
    except FileNotFoundError as error:
        raise ClusterError(
            f"{program}: no such program on this machine; work on a login node of a SLURM cluster, "
            "or drop --cluster"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClusterError(
            f"{program}: SLURM does not answer within {COMMAND_SECONDS} seconds ({error}); try "
            "'sinfo', or drop --cluster"
        ) from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ClusterError(
            f"{program}: SLURM refused: {said[-1].removeprefix(f'{program}: error: ')}; look at "
            "the profile of --cluster, and at 'sinfo'"
        )
    return done.stdout
