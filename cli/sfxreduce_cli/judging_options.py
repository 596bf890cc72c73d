"""Options of commands by which events are judged, so that they mean and say the same in both."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.options import Device, PoolOptions

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
    from sfxreduce.scorers.protocol import Scorer

__all__ = [
    "SCORER",
    "AuditShare",
    "Confidence",
    "Cxi",
    "CxiFilter",
    "CxiPacking",
    "DriftGate",
    "MaxLoss",
    "ModelFolder",
    "OnOff",
    "ReportPage",
    "RunsOn",
    "SmallestScore",
    "check_cxi_filter",
    "check_probability",
    "given",
    "kind_of_device",
    "outputs_of",
    "settings_of",
    "wants_gpu",
]

SCORER = "How events are judged"


class CxiFilter(StrEnum):
    """How the frames of a CXI file are packed."""

    GZIP = "gzip"
    BLOSC = "blosc"


class OnOff(StrEnum):
    """Whether something is done."""

    ON = "on"
    OFF = "off"


Cxi = Annotated[
    Path | None, typer.Option(help="Also write the hits as CXI, with .geom and .lst beside it.")
]
CxiPacking = Annotated[
    CxiFilter, typer.Option(help="How its frames are packed; every HDF5 library unpacks gzip.")
]
ReportPage = Annotated[Path | None, typer.Option("--report", help="Also write an HTML page.")]
ModelFolder = Annotated[
    Path | None,
    typer.Option(
        "--model", help="Model folder; the shipped one if not given.", rich_help_panel=SCORER
    ),
]
SmallestScore = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        help="Smallest score of a hit; the model's if not given.",
        rich_help_panel=SCORER,
    ),
]
MaxLoss = Annotated[
    float, typer.Option(help="Share of hits that may be lost.", rich_help_panel=SCORER)
]
Confidence = Annotated[
    float, typer.Option(help="Confidence that no more are.", rich_help_panel=SCORER)
]
RunsOn = Annotated[
    Device,
    typer.Option("--device", help="What the network runs on.", rich_help_panel=SCORER),
]
DriftGate = Annotated[
    OnOff,
    typer.Option(
        "--drift",
        help="Compare the run with what the model knows; without it nothing is promised.",
        rich_help_panel=SCORER,
    ),
]
AuditShare = Annotated[
    float,
    typer.Option(help="Share of the rejected events to keep, drawn at random, for an audit."),
]


def outputs_of(ctx: typer.Context) -> Outputs:
    """Where the results go, by the options of a command."""
    options = ctx.params
    return sfxreduce.Outputs(
        store=options["out"],
        cxi=options["cxi"],
        cxi_filter=options["cxi_filter"].value,
        report=options["report"],
        overwrite=options["overwrite"],
    )


def settings_of(ctx: typer.Context, scorer: Scorer) -> FilterSettings:
    """What decides on events, by the options of a command."""
    options = ctx.params
    return sfxreduce.FilterSettings(
        scorer=scorer,
        threshold=options["threshold"],
        promise=sfxreduce.Promise(max_loss=options["max_loss"], confidence=options["confidence"]),
        drift=options["drift"] is OnOff.ON,
        audit_share=options["audit_share"],
    )


def check_cxi_filter(ctx: typer.Context) -> None:
    """Refuse a packing of a file that is not asked for."""
    if given(ctx, "cxi_filter") and ctx.params["cxi"] is None:
        raise UsageError("--cxi-filter means nothing without --cxi; add it or drop --cxi-filter")


def check_probability(threshold: float | None) -> None:
    """Refuse a threshold of the network that is no probability."""
    if threshold is not None and not 0 <= threshold <= 1:
        raise UsageError(
            f"--threshold {threshold}: the network's scores are probabilities, expected 0 to 1; "
            "for numbers of peaks use --scorer peaks --min-peaks"
        )


def given(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def wants_gpu(device: Device, where: PoolOptions) -> bool:
    """Whether a cluster of this machine should offer its GPU; other pools say for themselves."""
    if device is Device.CPU or where.serial or where.address:
        return False
    return device is Device.CUDA or sfxreduce.cuda_available()


def kind_of_device(device: Device, pool: Pool) -> str:
    """What the network is to run on, as the library names it."""
    on_gpu = device is Device.CUDA or (device is Device.AUTO and pool.has_gpu)
    return "cuda" if on_gpu else "cpu"
