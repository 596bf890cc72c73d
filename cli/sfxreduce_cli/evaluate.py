"""``sfxreduce evaluate``: how many hits a model loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    HitAtLeast,
    InRuns,
    LabelFiles,
    MissAtMost,
    Roots,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Untrusted,
    WindowName,
    Workers,
    labelling_of,
    working_pool,
)
from sfxreduce_cli.output import print_evaluation, print_json

__all__ = ["evaluate"]


def evaluate(
    in_: InRuns,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; the shipped one if not given.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Smallest score of a hit; the model's own else.")
    ] = None,
    window: Annotated[
        WindowName, typer.Option(help="Pixels the network looks at.")
    ] = WindowName.AUTO,
    hit_min_peaks: Annotated[
        int, typer.Option(min=1, help="Fewest true peaks of a hit, where the truth is known.")
    ] = 10,
    labels: LabelFiles = None,
    miss_at_most: MissAtMost = None,
    hit_at_least: HitAtLeast = None,
    root: Roots = None,
    untrusted: Untrusted = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Judge a model on runs it has not learned from, by their peak counts and by their truth.

    Example: sfxreduce evaluate --model model/ --in run3.zarr
    """
    runs = [sfxreduce.open_run(path, roots=root or (), untrusted=untrusted) for path in in_]
    scorer = sfxreduce.CnnScorer(model or sfxreduce.default_model(), looks_at=window.value)
    labelling = labelling_of(runs, labels, miss_at_most, hit_at_least)
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        found = sfxreduce.evaluate_scorer(
            scorer,
            runs,
            threshold=threshold,
            hit_min_peaks=hit_min_peaks,
            labelling=labelling,
            pool=pool,
            progress=progress,
        )
    if as_json:
        print_json(found.to_json())
    else:
        print_evaluation(found)
