"""``sfxreduce verify``: an output by its checksums, or against its source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    InRun,
    Roots,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Untrusted,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table, say

__all__ = ["verify"]


def verify(
    in_: InRun,
    against: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Compare with this source, the one it was made from."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare with the manifest only; needs no source.")
    ] = False,
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Compare with the source that the manifest names."),
    ] = False,
    data_path: DataPath = "",
    root: Roots = None,
    untrusted: Untrusted = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Check an output by its checksums, or bit for bit against its source; exit 4 if it is damaged.

    Both compare every byte with the checksums, and ledger, manifest and frames in their counts.

    Example: sfxreduce verify --quick --in hits.zarr

    Example: sfxreduce verify --in hits.zarr --against run.zarr
    """
    _check(against, quick=quick, deep=deep)
    source = None
    if against:
        source = sfxreduce.open_run(
            against, data_path=data_path, roots=root or (), untrusted=untrusted
        )
    elif deep:
        source = sfxreduce.source_of(
            in_, data_path=data_path, roots=root or (), untrusted=untrusted
        )
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        found = sfxreduce.verify_run(in_, against=source, pool=pool, progress=progress)
    for problem in found.problems:
        say(f"sfxreduce: {problem}")
    if as_json:
        print_json(found.to_json())
    else:
        trusted = (
            "every byte is as it was written" if quick else "every kept event equals its source"
        )
        print_table(
            f"{in_}: {trusted if found.ok else 'NOT to be trusted'}",
            {"checked": found.checked, "mismatched": found.mismatched}
            | {f"damaged file {n}": name for n, name in enumerate(found.damaged_files, start=1)},
        )
    if not found.ok:
        raise typer.Exit(4)


def _check(against: Path | None, *, quick: bool, deep: bool) -> None:
    """Refuse to guess how thorough a check is wanted."""
    if quick and (deep or against):
        other = "--deep" if deep else "--against"
        raise UsageError(f"--quick and {other} exclude each other; drop one of them")
    if not (quick or deep or against):
        raise UsageError(
            "expected --quick, or --against with the source to compare with; add one of them"
        )
