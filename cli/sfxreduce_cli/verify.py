"""``sfxreduce verify``: an output against its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    InRun,
    Roots,
    SchedulerAddress,
    Serial,
    Untrusted,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table, say

__all__ = ["verify"]


def verify(
    in_: InRun,
    against: Annotated[Path, typer.Option(metavar="RUN", help="The source it was made from.")],
    data_path: DataPath = "",
    root: Roots = None,
    untrusted: Untrusted = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Read an output and its source whole, and compare bit for bit; exit 4 if they differ.

    Example: sfxreduce verify --in hits.zarr --against run.zarr
    """
    source = sfxreduce.open_run(against, data_path=data_path, roots=root or (), untrusted=untrusted)
    with working_pool(serial=serial, scheduler=scheduler, workers=workers) as (pool, progress):
        found = sfxreduce.verify_reduced(in_, against=source, pool=pool, progress=progress)
    for problem in found.problems:
        say(f"sfxreduce: {problem}")
    if as_json:
        print_json(found.to_json())
    else:
        title = "every kept event equals its source" if found.ok else "NOT to be trusted"
        print_table(
            f"{in_}: {title}",
            {"checked": found.checked, "mismatched": found.mismatched}
            | {f"damaged file {n}": name for n, name in enumerate(found.damaged_files, start=1)},
        )
    if not found.ok:
        raise typer.Exit(4)
