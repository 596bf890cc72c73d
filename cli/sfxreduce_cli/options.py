"""Options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.output import ProgressDisplay, say
from sfxreduce_cli.pool_on_demand import PoolOnDemand

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.run.run import Run
    from sfxreduce.train.labelling import Labelling

__all__ = [
    "AsJson",
    "DataPath",
    "Device",
    "HitAtLeast",
    "InReduced",
    "InRun",
    "InRuns",
    "LabelFiles",
    "MissAtMost",
    "Out",
    "Overwrite",
    "Roots",
    "SchedulerAddress",
    "SecurityPath",
    "Serial",
    "Untrusted",
    "WindowName",
    "Workers",
    "labelling_of",
    "scheduler_of_environment",
    "working_pool",
]

POOL = "Where the work runs"


class Device(StrEnum):
    """What the network runs on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class WindowName(StrEnum):
    """What part of a frame the network looks at."""

    AUTO = "auto"
    CENTRE = "centre"
    FULL = "full"


InRun = Annotated[
    Path, typer.Option("--in", metavar="RUN", help="Run store, CXI or HDF5 file; never written to.")
]
InReduced = Annotated[
    Path,
    typer.Option("--in", metavar="HITS", help="Output of 'filter'; never written to."),
]
InRuns = Annotated[
    list[Path], typer.Option("--in", metavar="PATH...", help="One or several paths; globs work.")
]
Out = Annotated[Path, typer.Option("--out", metavar="PATH", help="Where the result goes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DataPath = Annotated[
    str,
    typer.Option("--data-path", help="Frames inside an HDF5 file, if not found."),
]
Roots = Annotated[
    list[Path] | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="A folder that links of HDF5 files may lead into, besides their own.",
    ),
]
Untrusted = Annotated[
    bool,
    typer.Option(
        "--untrusted", help="Let another process read the run, with limits; it may die of it."
    ),
]
MissAtMost = Annotated[
    float | None,
    typer.Option("--miss-at-most", help="Most peaks of a miss; the run's lower quartile else."),
]
HitAtLeast = Annotated[
    float | None,
    typer.Option("--hit-at-least", help="Fewest peaks of a hit; the run's upper quartile else."),
]
LabelFiles = Annotated[
    list[Path] | None,
    typer.Option("--labels", help="CSV of 'sfxreduce label', one a run in the order of --in."),
]
Serial = Annotated[
    bool, typer.Option("--serial", help="Work in this process.", rich_help_panel=POOL)
]
SchedulerAddress = Annotated[
    str,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="A running Dask scheduler; else DASK_SCHEDULER_ADDRESS, if set.",
        rich_help_panel=POOL,
    ),
]
SecurityPath = Annotated[
    Path | None,
    typer.Option(
        "--security",
        metavar="PATH",
        help="Certificates for a tls:// scheduler: a folder with tls-ca.pem, tls-cert.pem and "
        "tls-key.pem, or a TOML file with the paths ca, cert and key.",
        rich_help_panel=POOL,
    ),
]
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        min=0,
        help="Worker processes on this machine; 0 for one per processor.",
        rich_help_panel=POOL,
    ),
]


@contextmanager
def working_pool(
    *, serial: bool, scheduler: str, workers: int, security: Path | None, gpu: bool = False
) -> Iterator[tuple[Pool, ProgressDisplay]]:
    """Pool that the options ask for, opened when it is first needed; and a display of progress."""
    address = scheduler or ("" if serial else scheduler_of_environment())
    patience = _patience_of_environment()
    with ExitStack() as stack:

        def opened() -> Pool:
            pool = stack.enter_context(
                sfxreduce.open_pool(
                    serial=serial,
                    scheduler=address,
                    n_workers=workers,
                    gpu=gpu,
                    security=security,
                    **patience,
                )
            )
            if pool.dashboard:
                say(f"dashboard: {pool.dashboard}")
            return pool

        with ProgressDisplay() as display:
            yield PoolOnDemand(opened, has_gpu=None if address else gpu), display


def scheduler_of_environment() -> str:
    """Address that the environment names, as Dask itself does."""
    return os.environ.get("DASK_SCHEDULER_ADDRESS", "")


def _patience_of_environment() -> dict[str, float]:
    """How long nothing may be done before workers are restarted, if the environment says so."""
    said = os.environ.get("SFXREDUCE_PATIENCE_SECONDS")
    try:
        return {"patience_seconds": float(said)} if said else {}
    except ValueError:
        raise UsageError(
            f"SFXREDUCE_PATIENCE_SECONDS: expected a number of seconds, found '{said}'"
        ) from None


def labelling_of(
    runs: Sequence[Run],
    labels: Sequence[Path] | None,
    miss_at_most: float | None,
    hit_at_least: float | None,
) -> Labelling:
    """Labels from files if there are any, by peak counts otherwise."""
    if not labels:
        return sfxreduce.PeakLabelling(miss_at_most=miss_at_most, hit_at_least=hit_at_least)
    if miss_at_most is not None or hit_at_least is not None:
        raise UsageError("--labels: the files say it all; leave --miss-at-most and --hit-at-least")
    return sfxreduce.FileLabelling.of(runs, labels)
