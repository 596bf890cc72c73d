"""What jobs of a site ask for: a closed table, from a TOML file or from the defaults."""

from __future__ import annotations

import re
import sys
import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from dask.utils import parse_bytes
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from sfxreduce.errors import UsageError
from sfxreduce.io.files.safe_read import read_small

__all__ = ["SLURM", "SlurmProfile", "profile_of"]

SLURM = "slurm"
"""Name of a profile in which every key has its default."""

MOST_BYTES = 1 << 20

LONGEST_PAUSE = 600.0
"""Of seconds that a worker ends early, and that its end varies by."""

LEAST_SECONDS = 60

WALLTIME = re.compile(r"(?:(\d{1,3})-)?(\d{1,3}):([0-5]\d):([0-5]\d)")

EXPECTED = {
    "partition": "a name of SLURM, as 'milano'",
    "account": "a name of SLURM, as 'lcls:default'",
    "constraint": "features of SLURM without spaces, as 'epyc&75F3'",
    "cores": "a whole number from 1 to 1024",
    "memory": "the memory of a job with its unit, as '64 GB'",
    "walltime": "HH:MM:SS or D-HH:MM:SS of a minute or more, as '01:00:00'",
    "jobs": "a whole number from 1 to 10000",
    "jobs_max": "a whole number from 1 to 10000, and not below jobs",
    "interface": "the name of a network interface, as 'ib0'",
    "python": "one line: the command that is Python in a job",
    "prologue": "a list of lines of a shell, as ['module load cuda']",
    "local_directory": "a path without spaces, on a disk of the node",
    "log_directory": "an absolute path without spaces, on a file system that the nodes see",
    "gpus": "0 or 1: a worker has one graphics card; several are several jobs",
}


def _memory(text: str) -> str:
    if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", text) or parse_bytes(text) < 1 << 20:
        raise ValueError(text)
    return text


def _walltime(text: str) -> str:
    found = WALLTIME.fullmatch(text)
    if not found or _seconds(found) < LEAST_SECONDS:
        raise ValueError(text)
    return text


def _seconds(walltime: re.Match[str]) -> int:
    days, hours, minutes, seconds = (int(part or 0) for part in walltime.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.,:;@+&|*()\[\]%/=-]+$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\n\r\x00]*\S[^\n\r\x00]*$")]
Directory = Annotated[str, StringConstraints(pattern=r"^[^\s'\"\\;&|<>`]+$")]
Absolute = Annotated[str, StringConstraints(pattern=r"^/[^\s'\"\\;&|<>`$%]*$")]
Number = Annotated[int, Field(ge=1, le=10_000)]


class SlurmProfile(BaseModel):
    """What each job of SLURM asks for, and how many there are.

    What is None is left to SLURM, and to ``jobqueue.slurm`` of Dask's own configuration.

    Parameters
    ----------
    partition, account, constraint : str, optional
        As of ``sbatch``.
    cores : int
        Processors of a job; each has a worker of one thread.
    memory : str
        Of a job, with its unit; its workers share it.
    walltime : str
        HH:MM:SS or D-HH:MM:SS. Workers end some time before, and others take their place.
    jobs : int
        Jobs that are kept up.
    jobs_max : int, optional
        Up to which there are more of them as long as the work is worth it.
    interface : str, optional
        Network interface of the scheduler, here, and of the workers, on the nodes.
    python : str
        Command that is Python in a job; by default this one.
    prologue : list of str
        Lines of a shell before the worker starts.
    local_directory : str, optional
        Where workers keep temporary files, on a disk of the node.
    log_directory : str, optional
        Where jobs write what they say, and where their certificates lie while the command runs;
        by default ``~/.sfxreduce/slurm``. This machine and the nodes have to see it.
    gpus : int
        Graphics cards of a job, 0 or 1.

    Raises
    ------
    pydantic.ValidationError
        If a key is unknown or has no fitting value; see `profile_of`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    partition: Word | None = None
    account: Word | None = None
    constraint: Word | None = None
    cores: Annotated[int, Field(ge=1, le=1024)] = 1
    memory: Annotated[str, AfterValidator(_memory)] = "4 GB"
    walltime: Annotated[str, AfterValidator(_walltime)] = "01:00:00"
    jobs: Number = 2
    jobs_max: Number | None = None
    interface: Word | None = None
    python: Line = sys.executable
    prologue: list[Line] = []
    local_directory: Directory | None = None
    log_directory: Absolute | None = None
    gpus: Annotated[int, Field(ge=0, le=1)] = 0

    @property
    def workers_a_job(self) -> int:
        """Worker processes of a job: one for each core, or one for its graphics card."""
        return 1 if self.gpus else self.cores

    @property
    def walltime_seconds(self) -> int:
        """After which SLURM ends a job."""
        found = WALLTIME.fullmatch(self.walltime)
        return _seconds(found) if found else 0

    @property
    def stagger_seconds(self) -> float:
        """By which the end of workers varies, so that not all leave at once."""
        return min(LONGEST_PAUSE, self.walltime_seconds / 10)

    @property
    def lifetime_seconds(self) -> float:
        """After which a worker finishes and leaves, give or take the stagger.

        Loading Python counts towards a job's time and not towards its worker's: even the last one
        has a fifth of the time, or ten minutes, in hand.
        """
        in_hand = min(LONGEST_PAUSE, self.walltime_seconds / 5)
        return self.walltime_seconds - in_hand - self.stagger_seconds

    @property
    def most_jobs(self) -> int:
        """Jobs that there are at most."""
        return max(self.jobs, self.jobs_max or 0)

    @property
    def shared_folder(self) -> Path:
        """Folder that this machine and the nodes see."""
        if self.log_directory:
            return Path(self.log_directory)
        return Path.home() / ".sfxreduce" / "slurm"


def profile_of(cluster: str, *, jobs: int = 0, jobs_max: int = 0) -> SlurmProfile:
    """Read a profile.

    Parameters
    ----------
    cluster : str
        ``slurm``, or the path of a TOML file.
    jobs, jobs_max : int
        In place of those of the profile; 0 for these.

    Raises
    ------
    UsageError
        If there is no such file, or a key in it is unknown or has no fitting value.

    Examples
    --------
    >>> profile_of("slurm", jobs=3).jobs
    3
    """
    said = _read(cluster) if cluster != SLURM else {}
    typed = {"jobs": jobs, "jobs_max": jobs_max}
    given = {name: number for name, number in typed.items() if number}
    try:
        profile = SlurmProfile(**said | given)
    except ValidationError as error:
        raise _fault(cluster, error) from None
    if profile.jobs_max is not None and profile.jobs_max < profile.jobs:
        raise UsageError(
            f"--cluster {cluster}: jobs_max: expected {EXPECTED['jobs_max']} ({profile.jobs}), "
            f"found {profile.jobs_max}"
        )
    return profile


def _read(cluster: str) -> dict[str, Any]:
    if not cluster.endswith(".toml"):
        raise UsageError(
            f"--cluster {cluster}: expected local, slurm or the path of a profile, PROFILE.toml"
        )
    try:
        text = read_small(Path(cluster), most_bytes=MOST_BYTES).decode()
        return tomllib.loads(text)
    except (OSError, UnicodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--cluster {cluster}: expected a TOML file with keys as partition, cores and memory; "
            f"{reason}"
        ) from error


def _fault(cluster: str, error: ValidationError) -> UsageError:
    """Say the first thing that is wrong, in the words of this package."""
    first = error.errors()[0]
    key = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        near = get_close_matches(key, EXPECTED, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"expected {', '.join(EXPECTED)}"
        return UsageError(f"--cluster {cluster}: no key '{key}' here; {advice}")
    return UsageError(
        f"--cluster {cluster}: {key}: expected {EXPECTED[key]}, found {first['input']!r}"
    )
