"""``sfxreduce label``: what the events of a run are held to be."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce.run.labels import Label
from sfxreduce_cli.options import (
    AsJson,
    HitAtLeast,
    InRun,
    MissAtMost,
    Out,
    Overwrite,
    Roots,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Untrusted,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

if TYPE_CHECKING:
    from sfxreduce.train.labelling import Labelling

__all__ = ["label"]


class LabelSource(StrEnum):
    """Where labels are from."""

    PEAKS = "peaks"
    TRUTH = "truth"
    STREAM = "stream"
    CSV = "csv"


def label(
    in_: InRun,
    out: Out,
    from_: Annotated[
        LabelSource, typer.Option("--from", help="What says what is a hit.")
    ] = LabelSource.PEAKS,
    stream: Annotated[
        Path | None, typer.Option(help="CrystFEL stream; indexed events are hits.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Table with event or event_id, and label.")
    ] = None,
    miss_at_most: MissAtMost = None,
    hit_at_least: HitAtLeast = None,
    hit_min_peaks: Annotated[
        int, typer.Option(min=0, help="Fewest true peaks of a hit, with --from truth.")
    ] = 10,
    unindexed_is_miss: Annotated[
        bool, typer.Option("--unindexed-is-miss", help="With --from stream: the rest are misses.")
    ] = False,
    overwrite: Overwrite = False,
    root: Roots = None,
    untrusted: Untrusted = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Label every event of a run: hit, miss, or maybe where it cannot be told.

    Example: sfxreduce label --in run.zarr --out labels.csv --from stream --stream indexed.stream
    """
    run = sfxreduce.open_run(in_, roots=root or (), untrusted=untrusted)
    _check_files(from_, stream, csv)
    rule: Labelling = sfxreduce.PeakLabelling(miss_at_most=miss_at_most, hit_at_least=hit_at_least)
    if from_ is LabelSource.TRUTH:
        rule = sfxreduce.TruthLabelling(least_peaks=hit_min_peaks)
    elif stream is not None:
        rule = sfxreduce.StreamLabelling(path=stream, unindexed_is_miss=unindexed_is_miss)
    elif csv is not None:
        rule = sfxreduce.FileLabelling.of([run], [csv])
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        found = rule(run, pool=pool, progress=progress)
    sfxreduce.write_labels(out, found.label, run=run, source=from_.value, overwrite=overwrite)
    facts = {
        "out": str(out),
        "events": run.n_events,
        "hits": found.count(Label.HIT),
        "misses": found.count(Label.MISS),
        "maybe": found.count(Label.MAYBE),
        "source": from_.value,
        "rule": rule.sentence,
    }
    print_json(facts) if as_json else print_table(f"{out}: labelled", facts)


def _check_files(from_: LabelSource, stream: Path | None, csv: Path | None) -> None:
    """Refuse a file that is missing, or that would not be looked at."""
    for source, path in ((LabelSource.STREAM, stream), (LabelSource.CSV, csv)):
        if (path is not None) != (from_ is source):
            raise UsageError(
                f"--from {from_.value}: --{source.value} FILE goes with --from {source.value} and "
                f"only with it, found {path or 'no such file'}; give both or neither"
            )
