"""``sfxreduce ledger``: what became of every event, as a table for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import AsJson, Overwrite
from sfxreduce_cli.output import print_json, say

__all__ = ["ledger"]


def ledger(
    in_: Annotated[Path, typer.Option("--in", help="Reduced store.")],
    out: Annotated[Path, typer.Option(help="Table to write: .csv or .parquet.")],
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write one row for every source event: score, decision, reasons, source file, hash.

    Example: sfxreduce ledger --in hits.zarr --out ledger.parquet
    """
    rows = sfxreduce.ledger_run(in_, out, overwrite=overwrite)
    if as_json:
        print_json({"out": str(out), "rows": rows})
    else:
        say(f"{out}: events written: {rows:,}")
