"""``sfxreduce ingest``: files into a run store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    InRuns,
    Out,
    Overwrite,
    Roots,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Untrusted,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

__all__ = ["ingest"]

Retile = Annotated[
    bool,
    typer.Option(
        "--retile",
        help="Decode blosc-compressed HDF5 too, and cut it into tiles for the centre window.",
    ),
]


def ingest(
    in_: InRuns,
    out: Out,
    data_path: DataPath = "",
    root: Roots = None,
    untrusted: Untrusted = False,
    retile: Retile = False,
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Store CXI, HDF5, CBF or TIFF files as a run that is read tile by tile.

    Example: sfxreduce ingest --in frames/*.cbf.bz2 --out run.zarr
    """
    run = sfxreduce.open_run(in_, data_path=data_path, roots=root or (), untrusted=untrusted)
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        stored = sfxreduce.ingest_run(
            run, out=out, pool=pool, retile=retile, overwrite=overwrite, progress=progress
        )
    if as_json:
        print_json(asdict(stored))
    else:
        print_table(f"{out}: stored", asdict(stored))
