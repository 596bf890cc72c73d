"""What a filter run kept, dropped and saved: numbers for machines, one page for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from sfxreduce.decisions.assurance import Assurance
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.method import Method
from sfxreduce.io.files.durable import output_errors, write_file
from sfxreduce.report.figures import (
    Thumbnail,
    assembled_png,
    curve_svg,
    histogram_svg,
    hit_rate_svg,
    reliability_svg,
    share_svg,
)
from sfxreduce.run.columns import plain_text
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder

__all__ = [
    "Report",
    "Storage",
    "choose_events",
    "human_bytes",
    "make_thumbnails",
    "render_html",
    "rounded",
    "short_path",
    "summarize",
    "write_page",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The numbers of one filter run. Counts are numbers of events, sizes are bytes on disk.

    Parameters
    ----------
    events : int
        Events of the source run: hits, undecided and rejected together.
    kept : int
        Hits and undecided events, as many as the output has frames.
    threshold : float
        Smallest score of a hit.
    model_sha256 : str or None
        Of the model's weights; None for a scorer without.
    bytes_in, bytes_out, bytes_saved : int
        Of the source, of the reduced store, and their difference.
    reduction_factor : float
        Bytes in over bytes out.
    out : str
        Path of the reduced store.
    cxi, nxmx, report : str or None
        Paths of the other outputs, if they were asked for.
    dials_gain : float or None
        What DIALS takes as ``gain=`` for `nxmx`, in ADU per photon.
    max_loss, confidence : float
        What was asked of the threshold.
    certified : bool
        Whether that is promised for hits like those the scorer was calibrated on.
    assurance : mapping
        The promise, or what withholds it: a `sfxreduce.decisions.assurance.Assurance`.
    gap : mapping or None
        The run's own gap below the promised threshold, a `sfxreduce.decisions.method.Gap`.
    gap_reason : str or None
        Why there is none.
    first_look : mapping or None
        ``tiles`` that are looked at first, the ``share`` of the threshold that they have to reach,
        and the ``line`` that this makes; None where all tiles are looked at together.
    kept_for_peaks : int
        Undecided events that are kept for their number of peaks.
    window_tiles, tiles_total : int or None
        Tiles of the assembled picture that were looked at, and all there are; None for a scorer
        that looks at source frames.
    tiles_per_event : float or None
        Tiles that scores rest on, on average over the events that could be read: the others of an
        event are not looked at where the first ones decide. None for whole source frames.
    audit_sample : int
        Rejected events that are kept for an audit, beside the others and not counted as kept.
    geometry : str
        Whether the places of the panels are "given" or "assumed".
    changed : int
        Events whose pixels changed between scoring and copying; those kept are undecided.
    plugin_path : str or None
        Folder that readers of the CXI or NXmx file need in HDF5_PLUGIN_PATH; None if they need
        none.
    not_carried : tuple of str
        Per-event data of the source that no output has.
    """

    events: int
    hits: int
    undecided: int
    rejected: int
    kept: int
    threshold: float
    scorer: str
    model_sha256: str | None
    bytes_in: int
    bytes_out: int
    bytes_saved: int
    reduction_factor: float
    wall_seconds: float
    out: str
    cxi: str | None = None
    nxmx: str | None = None
    dials_gain: float | None = None
    report: str | None = None
    max_loss: float = 0.01
    confidence: float = 0.95
    certified: bool = False
    assurance: Mapping[str, Any] = field(default_factory=lambda: Assurance().to_json())
    gap: Mapping[str, Any] | None = None
    gap_reason: str | None = None
    first_look: Mapping[str, Any] | None = None
    kept_for_peaks: int = 0
    window_tiles: int | None = None
    tiles_total: int | None = None
    tiles_per_event: float | None = None
    audit_sample: int = 0
    geometry: str = "given"
    changed: int = 0
    plugin_path: str | None = None
    not_carried: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """What was read and written."""

    bytes_in: int
    bytes_out: int
    out: Path
    cxi: Path | None
    report: Path | None
    nxmx: Path | None = None
    dials_gain: float | None = None
    plugin_path: str | None = None
    not_carried: tuple[str, ...] = ()


def summarize(
    decisions: Decisions,
    *,
    method: Method,
    storage: Storage,
    wall_seconds: float,
    geometry: str = "given",
) -> Report:
    """Count events and bytes of a filter run.

    Parameters
    ----------
    wall_seconds : float
        From the first read until the outputs are ready to be published.
    geometry : str
        See `Report`.
    """
    hits = decisions.count(Decision.HIT)
    undecided = decisions.count(Decision.UNDECIDED)
    return Report(
        events=decisions.score.size,
        hits=hits,
        undecided=undecided,
        rejected=decisions.count(Decision.REJECT),
        kept=hits + undecided,
        threshold=method.threshold,
        scorer=method.scorer,
        model_sha256=method.model_sha256,
        bytes_in=storage.bytes_in,
        bytes_out=storage.bytes_out,
        bytes_saved=storage.bytes_in - storage.bytes_out,
        reduction_factor=storage.bytes_in / storage.bytes_out,
        wall_seconds=wall_seconds,
        out=str(storage.out),
        cxi=str(storage.cxi) if storage.cxi else None,
        nxmx=str(storage.nxmx) if storage.nxmx else None,
        dials_gain=storage.dials_gain,
        report=str(storage.report) if storage.report else None,
        audit_sample=decisions.sample.size,
        tiles_per_event=decisions.tiles_per_event,
        geometry=geometry,
        changed=int(np.count_nonzero(decisions.reason & np.uint32(Reason.CHANGED))),
        plugin_path=storage.plugin_path,
        not_carried=storage.not_carried,
        kept_for_peaks=int(np.count_nonzero(decisions.reason & np.uint32(Reason.PEAK_COUNT))),
        **method.claims,
    )


def human_bytes(n_bytes: float) -> str:
    """Bytes in the unit a person would choose, powers of ten.

    Examples
    --------
    >>> human_bytes(1_234_000_000), human_bytes(512)
    ('1.23 GB', '512 B')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(n_bytes) < 1000 or unit == "TB":
            break
        n_bytes /= 1000
    return f"{n_bytes:.3g} {unit}" if abs(n_bytes) < 999.5 else f"{n_bytes:,.0f} {unit}"


def rounded(value: float, digits: int = 0) -> str:
    """Number with so many digits after the point, its thousands told apart, and no minus zero.

    Examples
    --------
    >>> rounded(-12345.678, 1), rounded(-0.4)
    ('-12,345.7', '0')
    """
    return f"{round(value, digits) + 0.0:,.{digits}f}"


def short_path(path: str | Path) -> str:
    """Path as seen from the working directory, if it lies below it.

    Examples
    --------
    >>> short_path(Path.cwd() / "demo" / "run.zarr")
    'demo/run.zarr'
    """
    folder = Path.cwd()
    return str(Path(path).relative_to(folder) if folder in Path(path).parents else path)


PER_DECISION = {Decision.REJECT: 8, Decision.UNDECIDED: 4, Decision.HIT: 8}


def choose_events(decisions: Decisions) -> NDArray[np.int64]:
    """Events worth a look, in the order in which they are shown.

    Of the rejected ones those nearest to the threshold, of the hits a row from weak to strong, of
    the undecided ones the first.

    Returns
    -------
    ndarray of int64
        Positions in the run.
    """
    chosen: list[NDArray[np.int64]] = []
    for decision, wanted in PER_DECISION.items():
        events = np.flatnonzero(decisions.decision == decision)
        order = events[np.argsort(decisions.score[events], kind="stable")]
        if decision is Decision.REJECT:
            chosen.append(order[::-1][:wanted])
        elif decision is Decision.HIT:
            places = np.linspace(0, max(order.size - 1, 0), min(wanted, order.size))
            chosen.append(order[places.astype(int)])
        else:
            # What ended a worker would end this process as well.
            harmless = (decisions.reason[events] & np.uint32(Reason.WORKER_LOST)) == 0
            chosen.append(events[harmless][:wanted])
    return np.concatenate(chosen)


def make_thumbnails(run: Run, decisions: Decisions) -> list[Thumbnail]:
    """Read the chosen events and draw them, peaks included. Unreadable events are left out."""
    detector, finder = run.detector, PeakFinder()
    good, radius = detector.good(), detector.radius()
    row, column = detector.assembled_positions()
    rows, columns = detector.assembly().shape
    thumbnails = []
    for event in choose_events(decisions).tolist():
        reading = run.source.read([event])
        if reading.reasons[0]:
            continue
        frame = reading.pixels[0]
        found = finder.find(frame, good, radius, adu_per_photon=detector.adu_per_photon)
        y, x = np.rint(found.y).astype(int), np.rint(found.x).astype(int)
        place = (found.panel, y, x) if detector.stacked else (y, x)
        thumbnails.append(
            Thumbnail(
                source_index=event,
                score=float(decisions.score[event]),
                decision=Decision(decisions.decision[event]),
                png=assembled_png(frame, detector),
                size=(columns, rows),
                peaks=tuple(zip(column[place].tolist(), row[place].tolist(), strict=True)),
            )
        )
    return thumbnails


def write_page(
    path: Path, report: Report, decisions: Decisions, *, run: Run, method: Method
) -> None:
    """Write the report page, with pictures of events of the run.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    page = render_html(
        report,
        decisions,
        source=run.path,
        method=method,
        thumbnails=make_thumbnails(run, decisions),
    )
    with output_errors(path):
        write_file(path, plain_text(page).encode())


def render_html(
    report: Report,
    decisions: Decisions,
    *,
    source: str,
    method: Method,
    thumbnails: Sequence[Thumbnail],
) -> str:
    """One page, in one file, that a beamline scientist reads in a glance and can veto.

    Parameters
    ----------
    source : str
        Path of the run.
    thumbnails : sequence of Thumbnail
        Hits, undecided events, and the rejected ones nearest to the threshold.

    Returns
    -------
    str
        HTML that needs no network.
    """
    environment = Environment(
        loader=PackageLoader("sfxreduce.report"), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["bytes"] = human_bytes
    return environment.get_template("report.html").render(
        report=report,
        source=short_path(source),
        method=method,
        share=share_svg(report.hits, report.undecided, report.rejected),
        hit_rate=hit_rate_svg(decisions),
        histogram=histogram_svg(decisions.score, threshold=report.threshold),
        reasons=_reason_counts(decisions),
        curve=curve_svg(method.curves.loss, chosen=method.curves.window),
        reliability=reliability_svg(method.curves.reliability),
        min_peaks=MIN_PEAKS,
        gallery=[
            (title, [t for t in thumbnails if t.decision is decision])
            for decision, title in _GALLERY.items()
        ],
    )


_GALLERY = {
    Decision.REJECT: "Rejected, those nearest to the threshold: look here first",
    Decision.UNDECIDED: "Undecided, kept",
    Decision.HIT: "Hits, from weak to strong",
}


def _reason_counts(decisions: Decisions) -> list[tuple[str, int]]:
    """Count the events with each reason, those that occur."""
    counts = [
        (
            str(reason.name).lower().replace("_", " "),
            int(np.count_nonzero(decisions.reason & reason)),
        )
        for reason in Reason
        if reason is not Reason.AUDIT_SAMPLE  # there is nothing odd about it
    ]
    return [(name, n) for name, n in counts if n]
