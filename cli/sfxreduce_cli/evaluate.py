"""``sfxreduce evaluate``: how many hits a model loses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.options import (
    AsJson,
    InputOptions,
    InRuns,
    LabelOptions,
    PoolOptions,
    WindowName,
    spread_options,
)
from sfxreduce_cli.output import print_evaluation

__all__ = ["evaluate"]


@spread_options
def evaluate(
    *,
    in_: InRuns,
    model: Annotated[
        Path | None, typer.Option(help="Model folder; default: the shipped one.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Smallest score of a hit; default: the model's own.")
    ] = None,
    window: Annotated[
        WindowName, typer.Option(help="Pixels the network scores.")
    ] = WindowName.AUTO,
    hit_min_peaks: Annotated[
        int, typer.Option(min=1, help="Fewest true peaks of a hit, where the truth is known.")
    ] = 10,
    labelled: LabelOptions,
    inputs: InputOptions,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model on runs it has not learned from, by their peak counts and their truth.

    Example: sfxreduce evaluate --model model/ --in run3.zarr
    """
    runs = [inputs.opened(path) for path in in_]
    with where.opened() as work:
        evaluation = sfxreduce.evaluate_model(
            sfxreduce.CnnScorer(model or sfxreduce.default_model(), looks_at=window.value),
            runs,
            threshold=threshold,
            hit_min_peaks=hit_min_peaks,
            labelling=labelled.labelling(runs),
            **work,
        )
    print_evaluation(evaluation, as_json=as_json)
