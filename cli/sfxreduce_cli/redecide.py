"""``sfxreduce redecide``: another threshold for an output, without the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

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
    DataPath,
    Device,
    InReduced,
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
from sfxreduce_cli.output import print_filter_plan, print_redecided

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.cluster.pool import Progress
    from sfxreduce.pipeline.stages.reduced import Reduced
    from sfxreduce.pipeline.stages.settings import Outputs

__all__ = ["redecide"]

PROMISE_OPTIONS = ("model", "max_loss", "confidence", "drift")


def redecide(
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
    data_path: DataPath = "",
    root: Roots = None,
    untrusted: Untrusted = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Decide anew, print the plan, write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Apply another threshold to an output, by the scores in its ledger.

    The result is the store that 'filter' would write. Frames that the output holds are taken over.

    Example: sfxreduce redecide --in hits.zarr --against run.zarr --max-loss 0.005 --out hits2.zarr
    """
    check_cxi_filter(ctx)
    run = sfxreduce.open_run(against, data_path=data_path, roots=root or (), untrusted=untrusted)
    outputs = outputs_of(ctx)
    outputs.check(run, in_)  # also here: reading the earlier output takes its time
    gpu = wants_gpu(device, serial=serial, scheduler=scheduler)
    with working_pool(
        serial=serial, scheduler=scheduler, workers=workers, security=security, gpu=gpu
    ) as (pool, show):
        known = sfxreduce.read_reduced(in_, pool=pool, progress=show)
        _check(ctx, known, threshold)
        settings = settings_of(ctx, known.scorer(model=model, device=kind_of_device(device, pool)))
        where = Where(known=known, outputs=outputs, pool=pool, progress=show)
        if dry_run:
            plan = sfxreduce.plan_filter(run, settings, **where)
        else:
            done = sfxreduce.redecide_run(run, settings, **where)
    print_filter_plan(plan, as_json=as_json) if dry_run else print_redecided(*done, as_json=as_json)


class Where(TypedDict):
    """What planning and making an output anew have in common."""

    known: Reduced
    outputs: Outputs
    pool: Pool
    progress: Progress


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
