"""The report page: figures, counts of reasons, and pictures of the events worth a look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

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
from sfxreduce.report.report import Report, human_bytes, short_path
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakFinder

__all__ = ["choose_events", "make_thumbnails", "render_html", "write_page"]

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
        write_file(path, page.encode())


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
