"""``sfxreduce review``: events of a filter run in a browser, labelled by keyboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, PlacedOptions, spread_options
from sfxreduce_cli.output import print_facts
from sfxreduce_cli.view import Port, say_address

__all__ = ["review"]


@spread_options
def review(
    *,
    in_: Annotated[Path, typer.Option("--in", metavar="STORE", help="Output of 'filter'.")],
    against: Annotated[Path, typer.Option(metavar="RUN", help="The run that was filtered.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="CSV of the labels; default: STORE.labels.csv."),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            "--draw",
            metavar="FILE",
            help="Output of 'audit draw': its events come first, and are labelled blind.",
        ),
    ] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="Who labels; default: user name.")] = "",
    port: Port = 0,
    inputs: PlacedOptions,
    as_json: AsJson = False,
) -> None:
    """Label events in the browser by keyboard, each label saved at once; Ctrl-C ends it.

    Example: sfxreduce review --in hits.zarr --against run.zarr
    """
    run = inputs.opened(against)
    labels = sfxreduce.review_run(in_, run, out=out, draw=draw, by=by, port=port, ready=say_address)
    facts = {"out": str(labels.path), **labels.counts}
    print_facts(f"{labels.path}: labels", facts, as_json=as_json)
