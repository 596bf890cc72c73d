"""``sfxreduce verify``: an output by its checksums, or against its source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.options import (
    AsJson,
    InputOptions,
    PoolOptions,
    Reading,
    spread_options,
)
from sfxreduce_cli.output import print_verification, say_next

if TYPE_CHECKING:
    from sfxreduce.run.run import Run

__all__ = ["verify"]


@spread_options
def verify(
    *,
    in_: Annotated[Path, typer.Option("--in", metavar="STORE", help="Output of 'filter'.")],
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
    inputs: InputOptions,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Check an output by its checksums, or bit for bit against its source; exit 4 if damaged.

    Both compare every byte with its checksum, and the counts of ledger, manifest and frames.

    Example: sfxreduce verify --quick --in hits.zarr

    Example: sfxreduce verify --in hits.zarr --against run.zarr
    """
    _check(against, quick=quick, deep=deep)
    source = _source(in_, against, deep=deep, reading=inputs.reading)
    with where.opened(small_here=source is None or source.is_checked) as work:
        verified = sfxreduce.verify_run(in_, against=source, **work)
    print_verification(verified, in_, quick=quick, as_json=as_json)
    if not verified.ok:
        raise typer.Exit(4)
    if against and source and source.source.inputs:  # files, which an archive can take
        say_next("archive", "plan", against, "--hits", in_, as_json=as_json)


def _source(in_: Path, against: Path | None, *, deep: bool, reading: Reading) -> Run | None:
    """Run to compare with, if any."""
    if against:
        return sfxreduce.open_run(against, **reading)
    return sfxreduce.open_source(in_, **reading) if deep else None


def _check(against: Path | None, *, quick: bool, deep: bool) -> None:
    """Refuse options that contradict each other, or leave open what to compare with."""
    if quick and (deep or against):
        other = "--deep" if deep else "--against"
        raise UsageError(f"--quick and {other} exclude each other; drop one of them")
    if not (quick or deep or against):
        raise UsageError(
            "expected --quick, or --against with the source to compare with; add one of them"
        )
