"""``sfxreduce report``: the sum of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.archiving import EvidenceDir
from sfxreduce_cli.options import AsJson, Overwrite, command_group
from sfxreduce_cli.output import print_savings

__all__ = ["report"]

report = command_group(
    "Sum up many runs.", example="report savings --root /data/experiment --out savings.html"
)


@report.callback()
def group() -> None:
    """Sum up many runs."""


@report.command("savings")
def savings(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Source runs; --root for a folder of them.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            "--root", metavar="DIR", help="All runs below a folder, and everything else in it."
        ),
    ] = None,
    hits: Annotated[
        list[Path] | None,
        typer.Option(
            "--hits",
            metavar="PATH",
            help="Their reduced stores, in order; default: as planned, or found beside the runs.",
        ),
    ] = None,
    evidence: EvidenceDir = None,
    rates: Annotated[
        Path | None,
        typer.Option("--rates", metavar="FILE", help="TOML of prices; default: published ones."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="Write a page, one HTML file.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Events of each run on which alternatives are measured; 0 for none. "
            "Default: 100 for up to 4 named runs, none for more.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show where every byte of some runs is, what was saved, and how many hits that may cost.

    Example: sfxreduce report savings --root /data/experiment --out savings.html
    """
    if bool(runs) == bool(root):
        raise UsageError("report savings: expected runs, or --root DIR")
    if root is not None and (hits or evidence):
        raise UsageError("report savings: --hits and --evidence go with runs, not with --root")
    weighed = sfxreduce.archive.report_savings(
        runs or (), root=root, hits=hits or (), evidence=evidence, rates=rates, sample=sample
    )
    if out is not None:
        sfxreduce.archive.write_page(weighed, out, overwrite=overwrite)
    print_savings(weighed, out, as_json=as_json)
