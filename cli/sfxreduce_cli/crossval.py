"""``sfxreduce crossval``: experiments judged by models that have not seen them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, PoolOptions, spread_options
from sfxreduce_cli.output import print_crossval

__all__ = ["crossval"]


@spread_options
def crossval(
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Folder for models and their material; resumable."
        ),
    ],
    scale: Annotated[
        float, typer.Option(min=0.01, max=10.0, help="Share of the usual number of events.")
    ] = 1.0,
    experiment: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="At least three, one for each option; default: all."),
    ] = None,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Leave out each simulated experiment in turn, learn from the others, count lost hits.

    Writes DIR/model, which has learned from all, and DIR/without/EXPERIMENT. Simulated material
    stays in DIR/material: the same command resumes where it was stopped.

    Example: sfxreduce crossval --out across/
    """
    chosen: dict[str, Any] = {"experiments": experiment} if experiment else {}
    with where.opened() as work:
        across = sfxreduce.crossval_models(out, scale=scale, **chosen, **work)
    print_crossval(across, out, as_json=as_json)
