"""``sfxreduce filter``: keep the hits, account for everything else."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.judging_options import (
    SCORER,
    AuditShare,
    Confidence,
    Cxi,
    CxiFilter,
    CxiPacking,
    DriftGate,
    MaxLoss,
    ModelFolder,
    OnOff,
    ReportPage,
    RunsOn,
    SmallestScore,
    check_cxi_filter,
    check_probability,
    given,
    kind_of_device,
    outputs_of,
    settings_of,
    wants_gpu,
)
from sfxreduce_cli.options import (
    AsJson,
    Device,
    InputOptions,
    InRun,
    Out,
    Overwrite,
    PoolOptions,
    WindowName,
    spread_options,
)
from sfxreduce_cli.output import print_filter, print_filter_plan

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.scorers.protocol import Scorer

__all__ = ["filter_"]

PEAK_OPTIONS = ("min_peaks", "min_snr", "min_pixels")
CNN_OPTIONS = ("model", "max_loss", "confidence", "window", "drift")


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
    cxi: Cxi = None,
    cxi_filter: CxiPacking = CxiFilter.GZIP,
    report: ReportPage = None,
    scorer: Annotated[
        ScorerName, typer.Option(help="Network, or peak count.", rich_help_panel=SCORER)
    ] = ScorerName.CNN,
    model: ModelFolder = None,
    threshold: SmallestScore = None,
    max_loss: MaxLoss = 0.01,
    confidence: Confidence = 0.95,
    window: Annotated[
        WindowName,
        typer.Option(help="Pixels the network scores.", rich_help_panel=SCORER),
    ] = WindowName.AUTO,
    min_peaks: Annotated[
        int, typer.Option(min=1, help="Fewest peaks of a hit, for peaks.", rich_help_panel=SCORER)
    ] = 8,
    min_snr: Annotated[
        float, typer.Option(help="Signal to noise of a peak, for peaks.", rich_help_panel=SCORER)
    ] = 5.5,
    min_pixels: Annotated[
        int, typer.Option(min=1, help="Smallest peak in pixels, for peaks.", rich_help_panel=SCORER)
    ] = 1,
    device: RunsOn = Device.AUTO,
    drift: DriftGate = OnOff.ON,
    audit_share: AuditShare = 0.01,
    inputs: InputOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Score and decide, print the plan, write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Keep the hits of a run bit for bit, and account for every event that is dropped.

    Example: sfxreduce filter --in run.zarr --out hits.zarr --report report.html
    """
    _check(ctx, scorer, threshold)
    run = sfxreduce.open_run(in_, **inputs.reading)
    outputs = outputs_of(ctx)
    with where.opened(gpu=scorer is ScorerName.CNN and wants_gpu(device, where)) as work:
        settings = settings_of(ctx, _scorer(ctx, work["pool"]))
        if dry_run:
            plan = sfxreduce.plan_filter(run, settings, outputs=outputs, **work)
        else:
            done = sfxreduce.filter_run(run, settings, outputs=outputs, **work)
    print_filter_plan(plan, as_json=as_json) if dry_run else print_filter(done, as_json=as_json)


def _check(ctx: typer.Context, scorer: ScorerName, threshold: float | None) -> None:
    """Refuse options of what was not asked for, and a probability that is none."""
    check_cxi_filter(ctx)
    foreign = PEAK_OPTIONS if scorer is ScorerName.CNN else CNN_OPTIONS
    for name in foreign:
        if given(ctx, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} means nothing to --scorer {scorer.value}; drop one")
    if scorer is ScorerName.CNN:
        check_probability(threshold)


def _scorer(ctx: typer.Context, pool: Pool) -> Scorer:
    """Scorer that was asked for; a network on what the pool's workers have."""
    options = ctx.params
    if options["scorer"] is ScorerName.PEAKS:
        finder = sfxreduce.PeakFinder(min_snr=options["min_snr"], min_pixels=options["min_pixels"])
        return sfxreduce.PeakScorer(finder, min_peaks=options["min_peaks"])
    folder = options["model"] or sfxreduce.default_model()
    device = kind_of_device(options["device"], pool)
    return sfxreduce.CnnScorer(folder, device=device, looks_at=options["window"].value)
