"""``sfxreduce train``: a model from labelled runs, or from a model and a run of one's own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    SecurityPath,
    Serial,
    WindowName,
    Workers,
    labelling_of,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_table

if TYPE_CHECKING:
    from sfxreduce.scorers.cnn.model import Model

__all__ = ["train"]


class RecipeName(StrEnum):
    """How a network is trained."""

    MODERN = "modern"
    POSTER = "poster"


def train(
    in_: InRuns,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Model folder to write.")],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Model folder, or 'default': go on learning from one run that nobody labelled.",
        ),
    ] = "",
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="With --from: events of the run to look at; 400 if not given."),
    ] = None,
    recipe: Annotated[
        RecipeName | None, typer.Option(help="How it is trained; modern if not given.")
    ] = None,
    window: Annotated[
        WindowName,
        typer.Option(help="Pixels the network looks at; auto: as few tiles as will do."),
    ] = WindowName.AUTO,
    seed: Annotated[int, typer.Option(help="Same seed, same model.")] = 0,
    labels: LabelFiles = None,
    miss_at_most: MissAtMost = None,
    hit_at_least: HitAtLeast = None,
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Train a network on labelled runs, or let a model go on learning from a run of your own.

    Without --labels, the peaks counted on each event say what is a hit and what a miss.

    Example: sfxreduce train --in run1.zarr run2.zarr --out model/

    Example: sfxreduce train --from default --in run.zarr --out model/
    """
    sfxreduce.check_model_path(out, overwrite=overwrite)
    pool_options = {
        "serial": serial,
        "scheduler": scheduler,
        "workers": workers,
        "security": security,
    }
    if from_:
        given = (recipe, labels, miss_at_most, hit_at_least)
        if len(in_) != 1 or any(option is not None for option in given):
            raise UsageError(
                "--from: expected one run, which the peak finder labels, found "
                f"{len(in_)} and other labels or a recipe; leave --recipe, --labels, "
                "--miss-at-most and --hit-at-least"
            )
        start = sfxreduce.default_model() if from_ == "default" else Path(from_)
        model, facts = _adapted(in_[0], start, sample, seed, window, pool_options)
    else:
        if sample is not None:
            raise UsageError("--sample: goes with --from only; labelled runs are read whole")
        rule = (labels, miss_at_most, hit_at_least)
        model, facts = _trained(in_, recipe or RecipeName.MODERN, seed, window, rule, pool_options)
    sfxreduce.write_model(out, model, overwrite=overwrite)
    facts = {
        "out": str(out),
        "model_sha256": model.sha256,
        "threshold": model.config.threshold,
        **facts,
    }
    print_json(facts) if as_json else print_table(f"{out}: trained", _readable(facts))


def _trained(
    in_: list[Path],
    recipe: RecipeName,
    seed: int,
    window: WindowName,
    rule: tuple[list[Path] | None, float | None, float | None],
    pool_options: dict[str, Any],
) -> tuple[Model, dict[str, Any]]:
    """Model from labelled runs, and what it was made of."""
    if len({path.resolve() for path in in_}) < len(in_):
        raise UsageError("--in: a run is given twice; the last run is held out and must be its own")
    runs = [sfxreduce.open_run(path) for path in in_]
    labelling = labelling_of(runs, *rule)
    with working_pool(**pool_options) as (pool, progress):
        model = sfxreduce.train_model(
            runs,
            recipe=sfxreduce.RECIPES[recipe],
            seed=seed,
            window=window.value,
            labelling=labelling,
            pool=pool,
            progress=progress,
        )
    made = model.config.provenance.runs
    return model, {
        "recipe": recipe.value,
        "window": model.config.window.name,
        "windows": [one.to_json() for one in model.config.curve],
        "events": sum(run.events for run in made),
        "labelled_hits": sum(run.hits for run in made),
        "labelled_misses": sum(run.misses for run in made),
        "unlabelled": sum(run.unlabelled for run in made),
    }


def _adapted(
    in_: Path,
    start: Path,
    sample: int | None,
    seed: int,
    window: WindowName,
    pool_options: dict[str, Any],
) -> tuple[Model, dict[str, Any]]:
    """Model that went on learning from one run, and what became better."""
    model = sfxreduce.read_model(start)
    if window.value not in (WindowName.AUTO, model.config.window.name):
        raise UsageError(
            f"--window {window.value}: expected {model.config.window.name}, the window of {start}; "
            "leave --window out"
        )
    run = sfxreduce.open_run(in_)
    with working_pool(**pool_options) as (pool, progress):
        found = sfxreduce.adapt_model(
            run, start=model, sample=sample, seed=seed, pool=pool, progress=progress
        )
    return found.model, {"from": str(start), **found.to_json()}


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    """The same for a table: before and after in a few words each."""

    def in_words(judged: dict[str, Any]) -> str:
        return (
            f"{judged['lost']} of {judged['hits']} hits lost, {judged['rejected']} of "
            f"{judged['blanks']} misses rejected, threshold {judged['threshold']:.4g}"
        )

    return {
        name: in_words(value) if isinstance(value, dict) else value
        for name, value in facts.items()
        if name != "windows"
    }
