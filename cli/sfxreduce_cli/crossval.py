"""``sfxreduce crossval``: experiments judged by models that have not seen them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

__all__ = ["crossval"]


def crossval(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Where models and their material go; resumable."),
    ],
    scale: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Share of the usual number of events.")
    ] = 1.0,
    experiment: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="At least three, one an option; all if not given."),
    ] = None,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Leave out each simulated experiment in turn, learn from the others, count what is lost.

    Makes DIR/model, which has learned from all, and DIR/without/EXPERIMENT. What is simulated stays
    in DIR/material: the same command goes on where it was stopped.

    Example: sfxreduce crossval --out across/
    """
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        chosen = {"experiments": experiment} if experiment else {}
        found = sfxreduce.cross_validate(out, scale=scale, pool=pool, progress=progress, **chosen)
    if as_json:
        print_json(found.to_json() | {"out": str(out)})
        return
    sys.stdout.write(f"{found.tables}\n\n")
    print_table(
        f"{out}: {len(found.judged)} experiments left out in turn",
        {"hits": sum(one.hits for one in found.judged)}
        | {"hits lost": sum(one.lost for one in found.judged)}
        | {"model": str(out / "model")},
    )
