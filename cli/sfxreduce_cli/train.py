"""``sfxreduce train``: a model from labelled runs, or from a model and a run of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    InRuns,
    LabelOptions,
    Overwrite,
    PoolOptions,
    WindowName,
    spread_options,
)
from sfxreduce_cli.output import print_trained, say

if TYPE_CHECKING:
    from sfxreduce.run.run import Run

__all__ = ["train"]


class RecipeName(StrEnum):
    """How a network is trained."""

    MODERN = "modern"
    POSTER = "poster"


@spread_options
def train(
    *,
    in_: InRuns,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Model folder to write.")],
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="MODEL",
            help="Model folder, or 'default': continue training it on one unlabelled run.",
        ),
    ] = "",
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="With --from: events of the run to score; default: 400."),
    ] = None,
    recipe: Annotated[
        RecipeName | None, typer.Option(help="How it is trained; default: modern.")
    ] = None,
    window: Annotated[
        WindowName,
        typer.Option(help="Pixels the network scores; auto: as few tiles as suffice."),
    ] = WindowName.AUTO,
    seed: Annotated[int, typer.Option(help="Same seed, same model.")] = 0,
    labelled: LabelOptions,
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Train a network on labelled runs, or continue training a model on a run of your own.

    Without --labels, hits have --min-peaks peaks or more and misses --miss-at-most or fewer; with
    --from, the peak finder labels a sample of the run by a stricter rule.

    Example: sfxreduce train --in run1.zarr run2.zarr --out model/

    Example: sfxreduce train --from default --in run.zarr --out model/
    """
    runs = _opened(in_, from_, sample)
    with where.opened() as work:
        trained = sfxreduce.train_model(
            runs,
            start=from_ or None,
            sample=sample,
            recipe=recipe,
            window=window,
            seed=seed,
            labelling=labelled.labelling(runs),
            out=out,
            overwrite=overwrite,
            **work,
        )
    print_trained(trained, out, as_json=as_json)


def _opened(paths: Sequence[Path], from_: str, sample: int | None) -> list[Run]:
    """Open runs; say what the one needs on which a model is to go on learning."""
    runs = [sfxreduce.open_run(path) for path in paths]
    if from_ and len(runs) == 1:
        say(f"train --from {from_}: {sfxreduce.train.needs(runs[0], sample=sample)}")
    return runs
