"""``sfxreduce label``: hit, miss or maybe for every event of a run."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.options import (
    AsJson,
    HitFrom,
    InRun,
    MissAtMost,
    Out,
    Overwrite,
    PlacedOptions,
    PoolOptions,
    peak_labelling,
    spread_options,
)
from sfxreduce_cli.output import print_facts

if TYPE_CHECKING:
    from sfxreduce.run.run import Run
    from sfxreduce.train.labelling import Labelling, PeakLabelling

__all__ = ["label"]


class LabelSource(StrEnum):
    """Where labels are from."""

    PEAKS = "peaks"
    QUARTILES = "quartiles"
    TRUTH = "truth"
    STREAM = "stream"
    CSV = "csv"


@spread_options
def label(
    *,
    in_: InRun,
    out: Out,
    from_: Annotated[
        LabelSource, typer.Option("--from", help="What decides which events are hits.")
    ] = LabelSource.PEAKS,
    stream: Annotated[
        Path | None, typer.Option(help="CrystFEL stream; indexed events are hits.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Table with event or event_id, and label.")
    ] = None,
    miss_at_most: MissAtMost = None,
    min_peaks: HitFrom = None,
    hit_min_peaks: Annotated[
        int, typer.Option(min=0, help="Fewest true peaks of a hit, with --from truth.")
    ] = 10,
    unindexed_is_miss: Annotated[
        bool, typer.Option("--unindexed-is-miss", help="With --from stream: the rest are misses.")
    ] = False,
    overwrite: Overwrite = False,
    inputs: PlacedOptions,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Label every event of a run: hit, miss, or maybe where it cannot be told.

    Example: sfxreduce label --in run.zarr --out labels.csv --from stream --stream indexed.stream
    """
    _check_files(from_, stream, csv)
    by_peaks = _by_peaks(from_, peak_labelling(miss_at_most, min_peaks))
    run = inputs.opened(in_)
    rule: Labelling | None = by_peaks
    if from_ is LabelSource.TRUTH:
        rule = sfxreduce.train.TruthLabelling(least_peaks=hit_min_peaks)
    rule = rule or _from_file(run, stream, csv, unindexed_is_miss=unindexed_is_miss)
    with where.opened() as work:
        labelled = sfxreduce.label_run(
            run, rule, source=from_.value, out=out, overwrite=overwrite, **work
        )
    print_facts(f"{out}: labelled", {"out": str(out), **labelled.to_json()}, as_json=as_json)


def _by_peaks(from_: LabelSource, given: PeakLabelling | None) -> Labelling | None:
    """Rule that counts peaks; None if labels are from elsewhere."""
    if given is not None and from_ is not LabelSource.PEAKS:
        raise UsageError(
            f"--from {from_.value}: --min-peaks and --miss-at-most go with --from peaks; drop them"
        )
    if from_ is LabelSource.QUARTILES:
        return sfxreduce.train.QuartileLabelling()
    return (given or sfxreduce.train.PeakLabelling()) if from_ is LabelSource.PEAKS else None


def _from_file(
    run: Run, stream: Path | None, csv: Path | None, *, unindexed_is_miss: bool
) -> Labelling:
    """Labels of a stream or a table, whichever is given."""
    if stream is not None:
        return sfxreduce.train.StreamLabelling(path=stream, unindexed_is_miss=unindexed_is_miss)
    return sfxreduce.train.FileLabelling.of([run], [csv] if csv else [])


def _check_files(from_: LabelSource, stream: Path | None, csv: Path | None) -> None:
    """Refuse a file that is missing, or that would not be read."""
    for source, path in ((LabelSource.STREAM, stream), (LabelSource.CSV, csv)):
        if (path is not None) != (from_ is source):
            raise UsageError(
                f"--from {from_.value}: --{source.value} FILE goes with --from {source.value} and "
                f"only with it, found {path or 'no such file'}; give both or neither"
            )
