"""``sfxreduce clean``: remove what killed commands left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson
from sfxreduce_cli.output import print_leftovers

__all__ = ["clean"]


def clean(
    path: Annotated[Path, typer.Argument(help="Output, there or not, or a folder with outputs.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be removed, remove nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove what killed commands left of an output, or anywhere below a folder.

    What a command is at work on stays, and so does what belongs to someone else. An unfinished
    filter run that is removed starts over.

    Example: sfxreduce clean hits.zarr --dry-run
    """
    print_leftovers(
        sfxreduce.clean_leftovers(path, dry_run=dry_run), dry_run=dry_run, as_json=as_json
    )
