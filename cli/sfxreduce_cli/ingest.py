"""``sfxreduce ingest``: files into a run store."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    Incomplete,
    InRuns,
    Out,
    Overwrite,
    PlacedOptions,
    PoolOptions,
    Settle,
    spread_options,
)
from sfxreduce_cli.output import print_facts, say_next

__all__ = ["ingest"]

Retile = Annotated[
    bool,
    typer.Option(
        "--retile",
        help="Decode blosc-compressed HDF5 too, and cut it into tiles for the centre window.",
    ),
]

Packing = Annotated[
    str,
    typer.Option(
        "--packing",
        help="fast: tiles are read in half of the time; small: 1 to 20 % fewer bytes.",
        metavar="fast|small",
    ),
]


@spread_options
def ingest(
    *,
    in_: InRuns,
    out: Out,
    inputs: PlacedOptions,
    retile: Retile = False,
    packing: Packing = "fast",
    incomplete: Incomplete = False,
    settle: Settle = 0.0,
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Store CXI, HDF5, CBF or TIFF files as a run that is read tile by tile.

    Example: sfxreduce ingest --in frames/*.cbf.bz2 --out run.zarr
    """
    run = sfxreduce.as_it_is(inputs.opened(in_), incomplete=incomplete, settle_seconds=settle)
    with where.opened() as work:
        stored = sfxreduce.ingest_run(
            run, out=out, retile=retile, packing=packing, overwrite=overwrite, **work
        )
    print_facts(f"{out}: stored", asdict(stored), as_json=as_json)
    say_next("filter", "--in", out, "--out", out.with_name("hits.zarr"), as_json=as_json)
