"""Options of commands by which events are judged, the same in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.config import in_force
from sfxreduce_cli.options import (
    SCORER,
    WRITING,
    Device,
    Incomplete,
    Overwrite,
    PoolOptions,
    Settle,
    WindowName,
)
from sfxreduce_cli.output import say, typed

if TYPE_CHECKING:
    from sfxreduce.cluster import Pool
    from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
    from sfxreduce.scorers.cnn.scorer import CnnScorer
    from sfxreduce.scorers.protocol import Scorer

__all__ = [
    "CxiFilter",
    "CxiLayout",
    "CxiPacking",
    "CxiPanels",
    "JudgingOptions",
    "OutputOptions",
    "given",
    "refuse_given",
]


SCORING = ("scorer", "model", "window", "min_peaks", "min_snr", "min_pixels")
"""Options that give events their scores; `redecide` takes the scorer from the earlier output."""

DECIDING = (
    "threshold",
    "max_loss",
    "confidence",
    "drift",
    "keep_from_peaks",
    "max_blanks_kept",
    "audit_share",
)
"""Options that decide on events: their values, and where these came from, are in the manifest."""

NOT_TYPED = ("environment", "user file")


class CxiFilter(StrEnum):
    """How the frames of a CXI file are packed."""

    GZIP = "gzip"
    BLOSC = "blosc"


class CxiLayout(StrEnum):
    """How the panels of a CXI file are stored."""

    MODULES = "modules"
    SLAB = "slab"


class NxmxCodec(StrEnum):
    """How the frames of an NXmx file are packed."""

    GZIP = "gzip"
    BSLZ4 = "bslz4"


class OnOff(StrEnum):
    """Whether something is done."""

    ON = "on"
    OFF = "off"


CxiPacking = Annotated[
    CxiFilter,
    typer.Option(
        "--cxi-filter",
        help="How frames of the CXI file are packed; every HDF5 library unpacks gzip.",
        rich_help_panel=WRITING,
    ),
]
CxiPanels = Annotated[
    CxiLayout,
    typer.Option(
        "--cxi-layout",
        help="Panels of the CXI file as an axis of their own, or one below the other.",
        rich_help_panel=WRITING,
    ),
]
NxmxPacking = Annotated[
    NxmxCodec,
    typer.Option(
        "--nxmx-codec",
        help="How frames of the NXmx file are packed; every HDF5 library unpacks gzip.",
        rich_help_panel=WRITING,
    ),
]
SensorLayer = Annotated[
    str,
    typer.Option(
        "--sensor",
        metavar="MATERIAL:THICKNESS",
        help="What the detector's sensors are, as Si:320um, or agipd, cspad, eiger, epix10k, "
        "jungfrau, pilatus; default: by the detector's name.",
        rich_help_panel=WRITING,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What is written beside the reduced store, and over what."""

    cxi: Annotated[
        Path | None,
        typer.Option(
            help="Also write the hits as CXI, with .geom and .lst beside it.",
            rich_help_panel=WRITING,
        ),
    ] = None
    cxi_filter: CxiPacking = CxiFilter.GZIP
    cxi_layout: CxiPanels = CxiLayout.MODULES
    cxi_without_geometry: Annotated[
        bool,
        typer.Option(
            "--cxi-without-geometry",
            help="Write no .geom, which needs distance, pixel size, gain and photon energy.",
            rich_help_panel=WRITING,
        ),
    ] = False
    nxmx: Annotated[
        Path | None,
        typer.Option(
            help="Also write the hits as NXmx for DIALS; with --cxi it links to the frames there.",
            rich_help_panel=WRITING,
        ),
    ] = None
    nxmx_codec: NxmxPacking = NxmxCodec.GZIP
    sensor: SensorLayer = ""
    report: Annotated[
        Path | None, typer.Option(help="Also write an HTML page.", rich_help_panel=WRITING)
    ] = None
    overwrite: Overwrite = False

    def outputs(self, out: Path, ctx: typer.Context) -> Outputs:
        """Where the results go; a form of a file that is not asked for is refused."""
        cxi, nxmx = self.cxi is not None, self.nxmx is not None
        means_something = {
            "cxi_filter": (cxi, "without --cxi; add it or"),
            "cxi_layout": (cxi, "without --cxi; add it or"),
            "cxi_without_geometry": (cxi, "without --cxi; add it or"),
            "nxmx_codec": (nxmx and not cxi, "unless --nxmx holds the frames, without --cxi;"),
            "sensor": (nxmx, "without --nxmx; add it or"),
        }
        for name, (fits, why) in means_something.items():
            if given(ctx, name) and not fits:
                option = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} means nothing {why} drop {option}")
        return sfxreduce.Outputs(
            store=out,
            cxi=self.cxi,
            cxi_filter=self.cxi_filter.value,
            cxi_layout=self.cxi_layout.value,
            cxi_without_geometry=self.cxi_without_geometry,
            nxmx=self.nxmx,
            nxmx_codec=self.nxmx_codec.value,
            sensor=self.sensor,
            report=self.report,
            overwrite=self.overwrite,
            command=typed(),
            options=_deciding(ctx),
        )


def _deciding(ctx: typer.Context) -> dict[str, dict[str, Any]]:
    """Options that decide on events; a line tells those that nobody typed."""
    for name, one in in_force(ctx, (*SCORING, *DECIDING)).items():
        if one["origin"] in NOT_TYPED:
            say(f"--{name.replace('_', '-')} {one['value']}: from the {one['origin']}")
    return in_force(ctx, DECIDING)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingOptions:
    """What decides on events, but for the scorer."""

    model: Annotated[
        Path | None,
        typer.Option(help="Model folder; the shipped one if not given.", rich_help_panel=SCORER),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Smallest score of a hit; the model's if not given.", rich_help_panel=SCORER
        ),
    ] = None
    max_loss: Annotated[
        float, typer.Option(help="Share of hits that may be lost.", rich_help_panel=SCORER)
    ] = 0.01
    confidence: Annotated[
        float, typer.Option(help="Confidence that no more are.", rich_help_panel=SCORER)
    ] = 0.95
    device: Annotated[
        Device, typer.Option(help="What the network runs on.", rich_help_panel=SCORER)
    ] = Device.AUTO
    drift: Annotated[
        OnOff,
        typer.Option(
            help="Compare the run with what the model knows; without it nothing is promised.",
            rich_help_panel=SCORER,
        ),
    ] = OnOff.ON
    keep_from_peaks: Annotated[
        int,
        typer.Option(
            min=0,
            help="Keep events with this many peaks or more, clearly more than the run's blanks, "
            "whatever they score; 0 keeps none, and nothing is promised.",
            rich_help_panel=SCORER,
        ),
    ] = 8
    max_blanks_kept: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Share of blanks to keep at most for a threshold in the run's own gap.",
            rich_help_panel=SCORER,
        ),
    ] = 0.02
    audit_share: Annotated[
        float,
        typer.Option(help="Share of the rejected events to keep, drawn at random, for an audit."),
    ] = 0.01
    incomplete: Incomplete = False
    settle: Settle = 0.0

    def settings(self, scorer: Scorer) -> FilterSettings:
        """What decides on events, with a scorer."""
        return sfxreduce.FilterSettings(
            scorer=scorer,
            threshold=self.threshold,
            promise=sfxreduce.Promise(max_loss=self.max_loss, confidence=self.confidence),
            drift=self.drift is OnOff.ON,
            keep_from_peaks=self.keep_from_peaks,
            max_blanks_kept=self.max_blanks_kept,
            audit_share=self.audit_share,
            incomplete=self.incomplete,
            settle_seconds=self.settle,
        )

    def wants_gpu(self, where: PoolOptions) -> bool:
        """Whether a cluster of this machine should offer its GPU; other pools say themselves."""
        if self.device is Device.CPU or where.serial or where.is_elsewhere:
            return False
        return self.device is Device.CUDA or sfxreduce.cuda_available()

    def network(self, pool: Pool, window: WindowName) -> CnnScorer:
        """Return a network on what the pool's workers have."""
        return sfxreduce.network_on(
            pool, model=self.model, device=self.device.value, looks_at=window.value
        )

    def check_probability(self) -> None:
        """Refuse a threshold of the network that is no probability."""
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(
                f"--threshold {self.threshold}: the network's scores are probabilities, expected 0 "
                "to 1; for numbers of peaks use --scorer peaks --min-peaks"
            )


def refuse_given(ctx: typer.Context, names: Sequence[str], *, by: str) -> None:
    """Refuse options on the command line that mean nothing to a scorer."""
    for name in names:
        if given(ctx, name):
            raise UsageError(f"--{name.replace('_', '-')} means nothing to {by}")


def given(ctx: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
