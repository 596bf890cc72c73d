"""Options that several commands share, so that they mean and say the same everywhere."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, get_type_hints

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.cluster_options import POOL, PoolOptions, tunnel
from sfxreduce_cli.help import Commands
from sfxreduce_cli.output import say

if TYPE_CHECKING:
    from sfxreduce.io.masks import GivenMask
    from sfxreduce.run.run import Run
    from sfxreduce.scorers.peaks.finder import PeakScorer
    from sfxreduce.train.labelling import Labelling, PeakLabelling

__all__ = [
    "POOL",
    "QUARTILES",
    "SCORER",
    "WRITING",
    "AsJson",
    "DataPath",
    "Device",
    "HitFrom",
    "InRun",
    "InRuns",
    "Incomplete",
    "InputOptions",
    "LabelOptions",
    "MissAtMost",
    "Out",
    "OutDir",
    "OutOfOne",
    "Overwrite",
    "PeakOptions",
    "PlacedOptions",
    "PoolOptions",
    "Reading",
    "Settle",
    "WindowName",
    "command_group",
    "peak_labelling",
    "spread_options",
    "tunnel",
]

SCORER = "How events are judged"
DETECTOR = "Where the pixels lie"
READING = "How the run is read"
WRITING = "What is written beside the store"


class Device(StrEnum):
    """What the network runs on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class WindowName(StrEnum):
    """What part of a frame the network scores."""

    AUTO = "auto"
    CENTRE = "centre"
    FULL = "full"


InRun = Annotated[
    Path,
    typer.Option(
        "--in",
        metavar="RUN",
        help="Run store or its s3:// address, CXI or HDF5 file, or many files: a folder, a quoted "
        "glob or @list.txt; never written to.",
    ),
]
InRuns = Annotated[
    list[Path],
    typer.Option(
        "--in", metavar="PATH...", help="One or several paths, folders, globs, @list.txt."
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="PATH", help="Where the result goes.")]
OutOfOne = Annotated[
    Path | None, typer.Option("--out", metavar="PATH", help="Where the result goes.")
]
OutDir = Annotated[
    Path | None,
    typer.Option(
        "--out-dir",
        metavar="DIR",
        help="Folder for the results of many runs: each path that --in stands for is then a run.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DataPath = Annotated[
    str,
    typer.Option(
        "--data-path",
        help="Path of the frames in an HDF5 file or Zarr group; default: by convention.",
        rich_help_panel=READING,
    ),
]
Incomplete = Annotated[
    bool,
    typer.Option(
        "--incomplete",
        help="Take a run that looks unfinished as it is; the output says so.",
        rich_help_panel=READING,
    ),
]
Settle = Annotated[
    float,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="Refuse a run of which a file changed less than SECONDS ago; 0: never.",
        rich_help_panel=READING,
    ),
]
MissAtMost = Annotated[
    int | None, typer.Option("--miss-at-most", min=0, help="Most peaks of a miss; default: 2.")
]
HitFrom = Annotated[
    int | None,
    typer.Option("--min-peaks", "--hit-at-least", min=1, help="Fewest peaks of a hit; default: 8."),
]
QUARTILES = "quartiles"


class Reading(TypedDict):
    """How runs are read, as the library names it."""

    data_path: str
    roots: Sequence[Path]
    untrusted: bool
    source: str


class PlacedReading(Reading):
    """How runs are read, and where their pixels lie."""

    geometry: Path | None
    mask: GivenMask | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """How runs are read."""

    data_path: DataPath = ""
    root: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="A folder that links in HDF5 files may lead to, besides their own.",
            rich_help_panel=READING,
        ),
    ] = None
    untrusted: Annotated[
        bool,
        typer.Option(
            "--untrusted",
            help="Read the run in a separate process with limits; that process may crash.",
            rich_help_panel=READING,
        ),
    ] = False
    source: Annotated[
        str,
        typer.Option(
            metavar="DETECTOR",
            help="Detector of a European XFEL run, whose folder is given, as SPB_DET_AGIPD1M-1.",
            rich_help_panel=READING,
        ),
    ] = ""

    @property
    def reading(self) -> Reading:
        """Arguments of `sfxreduce.open_run`."""
        return {
            "data_path": self.data_path,
            "roots": self.root or (),
            "untrusted": self.untrusted,
            "source": self.source,
        }

    @property
    def values(self) -> Mapping[str, float]:
        """What the user says of runs; nothing here."""
        return {}

    @property
    def polarity(self) -> str:
        """What to do about a mask that leaves few pixels."""
        return "is 1 good? Ingest it with --mask-good-is 1"

    def opened(self, path: Path | Sequence[Path]) -> Run:
        """Open a run; warn of what its files lack, or where a mask leaves too few pixels."""
        run = self.read(path)
        self.warn_of(run)
        return run

    def read(self, path: Path | Sequence[Path]) -> Run:
        """Open a run without a word."""
        run = sfxreduce.open_run(path, **self.reading)
        return sfxreduce.with_values(run, **self.values) if self.values else run

    def warn_of(self, run: Run) -> None:
        """Warn of what the files of a run lack, or where a mask leaves too few pixels."""
        for warning in run.warnings:
            say(f"sfxreduce: warning: {run.path}: {warning}")
        detector = run.detector
        if detector.is_assumed:
            say(
                f"sfxreduce: warning: {run.path}: nothing says where the panels of its frames of "
                f"{' x '.join(map(str, detector.frame_shape))} pixels lie; they are taken as they "
                "are stored, and nothing is promised. Give the detector's geometry with --geometry"
            )
        if not detector.is_usable():
            say(
                f"sfxreduce: warning: {run.path}: {100 * (1 - detector.usable_share()):.0f} % "
                f"masked: {self.polarity}. A score needs half of the pixels; events without one "
                "are undecided and kept"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedOptions(InputOptions):
    """How runs are read, and where their pixels lie."""

    geometry: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the pixels lie: a CrystFEL .geom or a NeXus master; it takes precedence "
            "over the run.",
            rich_help_panel=DETECTOR,
        ),
    ] = None
    mask: Annotated[
        str,
        typer.Option(
            metavar="FILE[:PATH]",
            help="Bad pixels besides those of the run: .npy, an image, or an HDF5 file and the "
            "path in it.",
            rich_help_panel=DETECTOR,
        ),
    ] = ""
    mask_good_is: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1,
            help="Good pixels are 0 or 1 in --mask, or else in the mask of the run; default: 0.",
            rich_help_panel=DETECTOR,
        ),
    ] = None
    distance_m: Annotated[
        float | None,
        typer.Option(help="Detector distance; overrides file and run.", rich_help_panel=DETECTOR),
    ] = None
    pixel_size_m: Annotated[
        float | None,
        typer.Option(help="Side of a pixel; overrides file and run.", rich_help_panel=DETECTOR),
    ] = None
    adu_per_photon: Annotated[
        float | None, typer.Option(help="Gain; overrides file and run.", rich_help_panel=DETECTOR)
    ] = None
    photon_energy_ev: Annotated[
        float | None,
        typer.Option(help="Of all events; overrides file and run.", rich_help_panel=DETECTOR),
    ] = None

    @property
    def reading(self) -> PlacedReading:
        """Arguments of `sfxreduce.open_run`."""
        return {
            "data_path": self.data_path,
            "roots": self.root or (),
            "untrusted": self.untrusted,
            "source": self.source,
            "geometry": self.geometry,
            "mask": sfxreduce.GivenMask(file=self.mask, good_is=self.mask_good_is)
            if self.mask or self.mask_good_is is not None
            else None,
        }

    @property
    def polarity(self) -> str:
        """What to do about a mask that leaves few pixels."""
        other = 0 if self.mask_good_is == 1 else 1
        return f"is {other} good? --mask-good-is {other}"

    @property
    def values(self) -> Mapping[str, float]:
        """Arguments of `sfxreduce.with_values` that were given."""
        names = ("distance_m", "pixel_size_m", "adu_per_photon", "photon_energy_ev")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakOptions:
    """Which events the peak finder calls hits."""

    min_peaks: Annotated[
        int,
        typer.Option(min=1, help="Fewest peaks of a hit (peak finder).", rich_help_panel=SCORER),
    ] = 8
    min_snr: Annotated[
        float, typer.Option(help="Signal to noise of a peak (peak finder).", rich_help_panel=SCORER)
    ] = 5.5
    min_pixels: Annotated[
        int,
        typer.Option(min=1, help="Smallest peak in pixels (peak finder).", rich_help_panel=SCORER),
    ] = 1

    @property
    def scorer(self) -> PeakScorer:
        """The peak finder, and the count that makes a hit."""
        finder = sfxreduce.PeakFinder(min_snr=self.min_snr, min_pixels=self.min_pixels)
        return sfxreduce.PeakScorer(finder, min_peaks=self.min_peaks)


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelOptions:
    """Where the labels of runs come from."""

    labels: Annotated[
        list[Path] | None,
        typer.Option(
            help="CSV of 'sfxreduce label', one for each run, in the order of --in, or "
            "'quartiles', the poster's rule; default: by --min-peaks and --miss-at-most."
        ),
    ] = None
    miss_at_most: MissAtMost = None
    min_peaks: HitFrom = None

    def labelling(self, runs: Sequence[Run]) -> Labelling | None:
        """Labels from files or by peak counts; None if the options say nothing."""
        by_peaks = peak_labelling(self.miss_at_most, self.min_peaks)
        if self.labels and by_peaks:
            raise UsageError("--labels: they say it all; drop --miss-at-most and --min-peaks")
        if self.labels == [Path(QUARTILES)]:
            return sfxreduce.train.QuartileLabelling()
        return sfxreduce.train.FileLabelling.of(runs, self.labels) if self.labels else by_peaks


def peak_labelling(miss_at_most: int | None, min_peaks: int | None) -> PeakLabelling | None:
    """Labels by these peak counts; None if neither is given."""
    given = {"miss_at_most": miss_at_most, "min_peaks": min_peaks}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return sfxreduce.train.PeakLabelling(**chosen) if chosen else None


def command_group(purpose: str, *, example: str) -> Commands:
    """Group of commands; without one it shows its help."""
    return Commands(help=f"{purpose}\n\nExample: sfxreduce {example}")


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options: such a parameter stands for the group's fields.

    The parameters of a command are keyword-only, as typer passes them by name.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = signature.parameters.values()
    groups: dict[str, Any] = {
        p.name: p.annotation for p in parameters if is_dataclass(p.annotation)
    }

    @wraps(command)
    def spread(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    spread_parameters = [
        option
        for p in parameters
        for option in (_fields(groups[p.name]) if p.name in groups else [p])
    ]
    spread.__signature__ = signature.replace(parameters=spread_parameters)  # type: ignore[attr-defined]
    return spread


def _fields(group: Any) -> list[inspect.Parameter]:
    """Fields of a group of options as parameters."""
    annotations = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=annotations[field.name],
        )
        for field in fields(group)
    ]
