"""``sfxreduce filter``: keep the hits, account for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sfxreduce
from sfxreduce.errors import SfxReduceError
from sfxreduce_cli.judging_options import JudgingOptions, OutputOptions, refuse_given
from sfxreduce_cli.options import (
    SCORER,
    AsJson,
    InRun,
    Out,
    PeakOptions,
    PlacedOptions,
    PoolOptions,
    WindowName,
    spread_options,
)
from sfxreduce_cli.output import print_filter, print_filter_plan

if TYPE_CHECKING:
    from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
    from sfxreduce.run.run import Run

__all__ = ["filter_"]

PEAK_OPTIONS = ("min_peaks", "min_snr", "min_pixels")
CNN_OPTIONS = (
    "model",
    "max_loss",
    "confidence",
    "window",
    "drift",
    "keep_from_peaks",
    "max_blanks_kept",
)


class ScorerName(StrEnum):
    """What gives an event its score."""

    CNN = "cnn"
    PEAKS = "peaks"


@spread_options
def filter_(
    *,
    ctx: typer.Context,
    in_: InRun,
    out: Out,
    beside: OutputOptions,
    scorer: Annotated[
        ScorerName, typer.Option(help="Network, or peak count.", rich_help_panel=SCORER)
    ] = ScorerName.CNN,
    judging: JudgingOptions,
    window: Annotated[
        WindowName, typer.Option(help="Pixels the network scores.", rich_help_panel=SCORER)
    ] = WindowName.AUTO,
    peaks: PeakOptions,
    inputs: PlacedOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Score and decide, print the plan, write nothing.")
    ] = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Keep the hits of a run bit for bit, and account for every event that is dropped.

    Example: sfxreduce filter --in run.zarr --out hits.zarr --report report.html
    """
    by_network = scorer is ScorerName.CNN
    foreign = PEAK_OPTIONS if by_network else CNN_OPTIONS
    outputs = beside.outputs(out, ctx)
    refuse_given(ctx, foreign, by=f"--scorer {scorer.value}; drop one")
    if by_network:
        judging.check_probability()
    run = inputs.opened(in_)
    gpu = by_network and judging.wants_gpu(where)
    with where.opened(gpu=gpu, small_here=run.is_checked) as work:
        network = judging.network(work["pool"], window) if by_network else None
        settings = judging.settings(network or peaks.scorer)
        show = _carried_out(run, settings, outputs, work, dry_run=dry_run)
    show(as_json=as_json)


def _carried_out(
    run: Run, settings: FilterSettings, outputs: Outputs, work: Mapping[str, Any], *, dry_run: bool
) -> Callable[..., None]:
    """Do it, or plan it; returns what prints the outcome."""
    with suppress(SfxReduceError):  # planning says it better
        work["progress"].hit_from = settings.hit_from(run.detector)
    if dry_run:
        plan = sfxreduce.plan_filter(run, settings, outputs=outputs, **work)
        return partial(print_filter_plan, plan)
    report = sfxreduce.filter_run(run, settings=settings, outputs=outputs, **work)
    return partial(print_filter, report, workers=work["pool"].facts)
