"""``sfxreduce report``: what many runs come to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfxreduce.errors import UsageError
from sfxreduce_cli.archiving import EvidenceDir
from sfxreduce_cli.options import AsJson, Overwrite
from sfxreduce_cli.output import print_json, print_savings

__all__ = ["report"]

report = typer.Typer(
    help="Sum up many runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
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
        typer.Option("--root", metavar="DIR", help="All runs below a folder, and all else in it."),
    ] = None,
    hits: Annotated[
        list[Path] | None,
        typer.Option(
            "--hits",
            metavar="PATH",
            help="Their reduced stores, in order; else as planned, or found beside the runs.",
        ),
    ] = None,
    evidence: EvidenceDir = None,
    rates: Annotated[
        Path | None,
        typer.Option("--rates", metavar="FILE", help="TOML of prices; published ones else."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PATH", help="Write a page, one HTML file.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Events of each run on which other ways are measured; 0 for none. "
            "100 for up to 4 named runs, else none.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Say where every byte of some runs is, what was saved, and at what price in hits.

    Example: sfxreduce report savings --root /data/experiment --out savings.html
    """
    from sfxreduce.archive.evidence import subject
    from sfxreduce.archive.savings import report as reporting

    if bool(runs) == bool(root):
        raise UsageError("report savings: expected runs, or --root DIR")
    if root is not None and (hits or evidence):
        raise UsageError("report savings: --hits and --evidence go with runs, not with --root")
    found = reporting.report_savings(
        runs or (),
        root=root,
        hits=hits or (),
        evidence=evidence,
        rates=rates,
        sample=sample,
        clock=subject.wall_clock,
    )
    if out is not None:
        reporting.write_page(found, out, overwrite=overwrite)
    print_json(found.to_json()) if as_json else print_savings(found, out)
