"""``sfxreduce geometry``: what a geometry file says."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, Out, Overwrite, command_group
from sfxreduce_cli.output import print_facts

__all__ = ["geometry"]

geometry = command_group(
    "See what a geometry file says before a run is filtered with it.",
    example="geometry show detector.geom --run run.cxi --out detector.svg",
)


@geometry.callback()
def group() -> None:
    """See what a geometry file says before a run is filtered with it."""


@geometry.command("show")
def show(
    file: Annotated[Path, typer.Argument(help="CrystFEL geometry file.")],
    out: Out,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run it is for: shapes are compared, gaps filled in."),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Draw the panels, the beam, resolution rings and the centre window.

    Example: sfxreduce geometry show detector.geom --run run.cxi --out detector.svg
    """
    placed = sfxreduce.open_run(run, geometry=file) if run else None
    facts = sfxreduce.show_geometry(file, run=placed, out=out, overwrite=overwrite)
    print_facts(f"{out}: drawn", asdict(facts), as_json=as_json)
