"""``sfxreduce why``: the decision on one event, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson
from sfxreduce_cli.output import print_json, print_lines, printable

__all__ = ["why"]


def why(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Output of 'filter'.")],
    event: Annotated[int, typer.Argument(help="Position in the source run, from 0.")],
    as_json: AsJson = False,
) -> None:
    """Explain why an event was kept or rejected, and where its frame is.

    Example: sfxreduce why hits.zarr 17
    """
    explained = sfxreduce.why_event(store, event)
    if as_json:
        print_json(explained.to_json())
    else:
        print_lines(map(printable, explained.sentences))
