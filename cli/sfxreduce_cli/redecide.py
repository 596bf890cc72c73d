"""``sfxreduce redecide``: another threshold for an output, without the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.judging_options import (
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
    InReduced,
    Out,
    Overwrite,
    PoolOptions,
    spread_options,
)
from sfxreduce_cli.output import print_filter_plan, print_redecided

if TYPE_CHECKING:
    from sfxreduce.pipeline.stages.reduced import Reduced

__all__ = ["redecide"]

PROMISE_OPTIONS = ("model", "max_loss", "confidence", "drift")


@spread_options
def redecide(
    *,
    ctx: typer.Context,
    in_: InReduced,
    against: Annotated[
        Path, typer.Option(metavar="RUN", help="Its source; only what it lacks is read from there.")
    ],
    out: Out,
    cxi: Cxi = None,
    cxi_filter: CxiPacking = CxiFilter.GZIP,
    report: ReportPage = None,
    model: ModelFolder = None,
    threshold: SmallestScore = None,
    max_loss: MaxLoss = 0.01,
    confidence: Confidence = 0.95,
    device: RunsOn = Device.AUTO,
    drift: DriftGate = OnOff.ON,
    audit_share: AuditShare = 0.01,
    inputs: InputOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide again, print the plan, write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Apply another threshold to an output, by the scores in its ledger.

    The result is the store that 'filter' would write. Frames that the output holds are copied over.

    Example: sfxreduce redecide --in hits.zarr --against run.zarr --max-loss 0.005 --out hits2.zarr
    """
    check_cxi_filter(ctx)
    run = sfxreduce.open_run(against, **inputs.reading)
    outputs = outputs_of(ctx)
    outputs.check(run, in_)  # also here: reading the earlier output takes its time
    with where.opened(gpu=wants_gpu(device, where)) as work:
        known = sfxreduce.read_reduced(in_, **work)
        _check(ctx, known, threshold)
        kind = kind_of_device(device, work["pool"])
        settings = settings_of(ctx, known.scorer(model=model, device=kind))
        if dry_run:
            plan = sfxreduce.plan_filter(run, settings, known=known, outputs=outputs, **work)
        else:
            done = sfxreduce.redecide_run(run, settings, known=known, outputs=outputs, **work)
    print_filter_plan(plan, as_json=as_json) if dry_run else print_redecided(*done, as_json=as_json)


def _check(ctx: typer.Context, old: Reduced, threshold: float | None) -> None:
    """Refuse what means nothing to the scorer of an output."""
    if old.manifest.model_sha256 is not None:
        check_probability(threshold)
        return
    if threshold is None:
        raise UsageError(
            f"{old.path}: judged by {old.manifest.scorer}, for which nothing can be promised; pass "
            "--threshold with the smallest score of a hit"
        )
    for name in PROMISE_OPTIONS:
        if given(ctx, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} means nothing to '{old.manifest.scorer}'; drop it")
