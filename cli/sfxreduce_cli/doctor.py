"""``sfxreduce doctor``: what is wrong with an installation, a store or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson
from sfxreduce_cli.output import print_json, print_table

__all__ = ["doctor"]


def doctor(
    store: Annotated[
        Path | None, typer.Option("--in", metavar="RUN", help="A run to be opened, too.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder that outputs will go to.")
    ] = Path(),
    port: Annotated[
        list[int] | None,
        typer.Option(help="A port that has to be free; may be given several times."),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; the shipped one if not given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, codecs, caches, ports, disk and model, and filter a few simulated frames.

    Ends with exit status 1 if anything is wrong. Example: sfxreduce doctor --in run.zarr
    """
    findings = sfxreduce.doctor_run(store, out=out, ports=port or (), model=model)
    wrong = [one for one in findings if one.problem]
    if as_json:
        print_json({"ok": not wrong, "checks": [one.to_json() for one in findings]})
    else:
        print_table(
            "No fault was found" if not wrong else f"Wrong: {', '.join(o.name for o in wrong)}",
            {one.name: f"WRONG: {one.problem}" if one.problem else one.fact for one in findings},
        )
    if wrong:
        raise typer.Exit(1)
