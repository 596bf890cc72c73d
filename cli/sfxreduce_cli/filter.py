"""``sfxreduce filter``: keep the hits, account for everything else."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    Device,
    InRun,
    Out,
    Overwrite,
    Roots,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Untrusted,
    WindowName,
    Workers,
    scheduler_of_environment,
    working_pool,
)
from sfxreduce_cli.output import print_filter_plan, print_filter_report

if TYPE_CHECKING:
    from sfxreduce.calibrate import Promise
    from sfxreduce.cluster import Pool
    from sfxreduce.progress import Progress
    from sfxreduce.scorer import Scorer

__all__ = ["filter_"]

SCORER = "How events are judged"
PEAK_OPTIONS = ("min_peaks", "min_snr", "min_pixels")
CNN_OPTIONS = ("model", "max_loss", "confidence", "window", "drift")


class ScorerName(StrEnum):
    """What gives an event its score."""

    CNN = "cnn"
    PEAKS = "peaks"


class CxiFilter(StrEnum):
    """How the frames of a CXI file are packed."""

    GZIP = "gzip"
    BLOSC = "blosc"


class OnOff(StrEnum):
    """Whether something is done."""

    ON = "on"
    OFF = "off"


def filter_(
    ctx: typer.Context,
    in_: InRun,
    out: Out,
    cxi: Annotated[
        Path | None, typer.Option(help="Also write the hits as CXI, with .geom and .lst beside it.")
    ] = None,
    cxi_filter: Annotated[
        CxiFilter,
        typer.Option(help="How its frames are packed; every HDF5 library unpacks gzip."),
    ] = CxiFilter.GZIP,
    report: Annotated[Path | None, typer.Option(help="Also write an HTML page.")] = None,
    scorer: Annotated[
        ScorerName, typer.Option(help="Network, or peak count.", rich_help_panel=SCORER)
    ] = ScorerName.CNN,
    model: Annotated[
        Path | None,
        typer.Option(help="Model folder; the shipped one if not given.", rich_help_panel=SCORER),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Smallest score of a hit; the model's if not given.", rich_help_panel=SCORER
        ),
    ] = None,
    max_loss: Annotated[
        float,
        typer.Option(help="Share of hits that may be lost.", rich_help_panel=SCORER),
    ] = 0.01,
    confidence: Annotated[
        float,
        typer.Option(help="Confidence that no more are.", rich_help_panel=SCORER),
    ] = 0.95,
    window: Annotated[
        WindowName,
        typer.Option(help="Pixels the network looks at.", rich_help_panel=SCORER),
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
    device: Annotated[
        Device, typer.Option(help="What the network runs on.", rich_help_panel=SCORER)
    ] = Device.AUTO,
    drift: Annotated[
        OnOff,
        typer.Option(
            help="Compare the run with what the model knows; without it nothing is promised.",
            rich_help_panel=SCORER,
        ),
    ] = OnOff.ON,
    audit_share: Annotated[
        float,
        typer.Option(help="Share of the rejected events to keep, drawn at random, for an audit."),
    ] = 0.01,
    data_path: DataPath = "",
    root: Roots = None,
    untrusted: Untrusted = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Score and decide, print the plan, write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Keep the hits of a run bit for bit, and account for every event that is dropped.

    Example: sfxreduce filter --in run.zarr --out hits.zarr --report report.html
    """
    run = sfxreduce.open_run(in_, data_path=data_path, roots=root or (), untrusted=untrusted)
    outputs = sfxreduce.Outputs(
        store=out, cxi=cxi, cxi_filter=cxi_filter.value, report=report, overwrite=overwrite
    )
    outputs.check(run)
    finder = sfxreduce.PeakFinder(min_snr=min_snr, min_pixels=min_pixels)
    counting = sfxreduce.PeakScorer(finder, min_peaks=min_peaks)
    _check(ctx, scorer, threshold)
    gpu = scorer is ScorerName.CNN and _wants_gpu(device, serial=serial, scheduler=scheduler)
    with working_pool(
        serial=serial, scheduler=scheduler, workers=workers, security=security, gpu=gpu
    ) as (pool, show):
        judge = counting if scorer is ScorerName.PEAKS else _network(model, device, window, pool)
        promise = sfxreduce.Promise(max_loss=max_loss, confidence=confidence)
        how = Judging(
            scorer=judge,
            pool=pool,
            threshold=threshold,
            promise=promise,
            drift=drift is OnOff.ON,
            audit_share=audit_share,
            progress=show,
        )
        if dry_run:
            plan = sfxreduce.plan_filter(run, **how)
        else:
            done = sfxreduce.run_filter(run, outputs=outputs, **how)
    if dry_run:
        print_filter_plan(plan, as_json=as_json)
    else:
        print_filter_report(done, as_json=as_json)


class Judging(TypedDict):
    """What planning and filtering have in common."""

    scorer: Scorer
    pool: Pool
    threshold: float | None
    promise: Promise
    drift: bool
    audit_share: float
    progress: Progress


def _check(ctx: typer.Context, scorer: ScorerName, threshold: float | None) -> None:
    """Refuse options of what was not asked for, and a probability that is none."""
    if _given(ctx, "cxi_filter") and ctx.params["cxi"] is None:
        raise UsageError("--cxi-filter means nothing without --cxi; add it or drop --cxi-filter")
    foreign = PEAK_OPTIONS if scorer is ScorerName.CNN else CNN_OPTIONS
    for name in foreign:
        if _given(ctx, name):
            option = name.replace("_", "-")
            raise UsageError(f"--{option} means nothing to --scorer {scorer.value}; drop one")
    if scorer is ScorerName.CNN and threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(
            f"--threshold {threshold}: the network's scores are probabilities, expected 0 to 1; "
            "for numbers of peaks use --scorer peaks --min-peaks"
        )


def _given(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _wants_gpu(device: Device, *, serial: bool, scheduler: str) -> bool:
    """Whether a cluster of this machine should offer its GPU; other pools say for themselves."""
    if device is Device.CPU or serial or scheduler or scheduler_of_environment():
        return False
    return device is Device.CUDA or sfxreduce.cuda_available()


def _network(model: Path | None, device: Device, window: WindowName, pool: Pool) -> Scorer:
    """Scorer of the model that was asked for, on what the pool's workers have."""
    folder = model or sfxreduce.default_model()
    on_gpu = device is Device.CUDA or (device is Device.AUTO and pool.has_gpu)
    kind = "cuda" if on_gpu else "cpu"
    return sfxreduce.CnnScorer(folder, device=kind, looks_at=window.value)
