"""``sfxreduce redecide``: another threshold for an output, without the pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.judging_options import JudgingOptions, OutputOptions, refuse_given
from sfxreduce_cli.options import AsJson, Out, PlacedOptions, PoolOptions, spread_options
from sfxreduce_cli.output import print_filter_plan, print_redecided

if TYPE_CHECKING:
    from sfxreduce.pipeline.stages.reduced import Reduced
    from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
    from sfxreduce.run.run import Run

__all__ = ["redecide"]

PROMISE_OPTIONS = (
    "model",
    "max_loss",
    "confidence",
    "drift",
    "keep_from_peaks",
    "max_blanks_kept",
)


@spread_options
def redecide(
    *,
    ctx: typer.Context,
    in_: Annotated[
        Path,
        typer.Option("--in", metavar="HITS", help="Output of 'filter'; never written to."),
    ],
    against: Annotated[
        Path, typer.Option(metavar="RUN", help="Its source; only what it lacks is read from there.")
    ],
    out: Out,
    beside: OutputOptions,
    judging: JudgingOptions,
    inputs: PlacedOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide again, print the plan, write nothing.")
    ] = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Apply another threshold to an output, by the scores in its ledger.

    The result is the store that 'filter' would write. Frames that the output holds are taken over.

    Example: sfxreduce redecide --in hits.zarr --against run.zarr --max-loss 0.005 --out hits2.zarr
    """
    outputs = beside.outputs(out, ctx)
    run = inputs.opened(against)
    outputs.check(run, in_)  # also here: reading the earlier output takes its time
    with where.opened(gpu=judging.wants_gpu(where), small_here=run.is_checked) as work:
        known = sfxreduce.read_reduced(in_, **work)
        _check(ctx, known, judging)
        device, pool = judging.device.value, work["pool"]
        scorer = known.scorer(model=judging.model, device=device, pool=pool)
        settings = judging.settings(scorer)
        show = _carried_out(run, settings, known, outputs, work, dry_run=dry_run)
    show(as_json=as_json)


def _carried_out(
    run: Run,
    settings: FilterSettings,
    known: Reduced,
    outputs: Outputs,
    work: Mapping[str, Any],
    *,
    dry_run: bool,
) -> Callable[..., None]:
    """Do it, or plan it; returns what prints the outcome."""
    if dry_run:
        plan = sfxreduce.plan_filter(run, settings, known=known, outputs=outputs, **work)
        return partial(print_filter_plan, plan)
    done = sfxreduce.redecide_run(run, settings, known=known, outputs=outputs, **work)
    return partial(print_redecided, *done, workers=work["pool"].facts)


def _check(ctx: typer.Context, old: Reduced, judging: JudgingOptions) -> None:
    """Refuse what means nothing to the scorer of an output."""
    if old.manifest.model_sha256 is not None:
        judging.check_probability()
        return
    if judging.threshold is None:
        raise UsageError(
            f"{old.path}: judged by {old.manifest.scorer}, for which nothing can be promised; pass "
            "--threshold with the smallest score of a hit"
        )
    refuse_given(ctx, PROMISE_OPTIONS, by=f"'{old.manifest.scorer}'; drop it")
