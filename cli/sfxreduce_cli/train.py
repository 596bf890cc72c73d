"""``sfxreduce train``: a model from labelled runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.options import (
    AsJson,
    HitAtLeast,
    InRuns,
    LabelFiles,
    MissAtMost,
    Overwrite,
    SchedulerAddress,
    Serial,
    Workers,
    labelling_of,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

__all__ = ["train"]


class RecipeName(StrEnum):
    """How a network is trained."""

    MODERN = "modern"
    POSTER = "poster"


def train(
    in_: InRuns,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Model folder to write.")],
    recipe: Annotated[RecipeName, typer.Option(help="How it is trained.")] = RecipeName.MODERN,
    seed: Annotated[int, typer.Option(help="Same seed, same model.")] = 0,
    labels: LabelFiles = None,
    miss_at_most: MissAtMost = None,
    hit_at_least: HitAtLeast = None,
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Train a network on runs whose events are labelled by their peak counts.

    Example: sfxreduce train --in run1.zarr run2.zarr --out model/
    """
    if len({path.resolve() for path in in_}) < len(in_):
        raise UsageError("--in: a run is given twice; the last run is held out and must be its own")
    sfxreduce.check_model_path(out, overwrite=overwrite)
    runs = [sfxreduce.open_run(path) for path in in_]
    labelling = labelling_of(runs, labels, miss_at_most, hit_at_least)
    with working_pool(serial=serial, scheduler=scheduler, workers=workers) as (pool, progress):
        model = sfxreduce.train_model(
            runs,
            recipe=sfxreduce.RECIPES[recipe],
            seed=seed,
            labelling=labelling,
            pool=pool,
            progress=progress,
        )
    sfxreduce.write_model(out, model, overwrite=overwrite)
    facts = {
        "out": str(out),
        "model_sha256": model.sha256,
        "threshold": model.config.threshold,
        "recipe": recipe.value,
        "events": sum(run.events for run in model.config.provenance.runs),
        "labelled_hits": sum(run.hits for run in model.config.provenance.runs),
        "labelled_misses": sum(run.misses for run in model.config.provenance.runs),
        "unlabelled": sum(run.unlabelled for run in model.config.provenance.runs),
    }
    if as_json:
        print_json(facts)
    else:
        print_table(f"{out}: trained", facts)
