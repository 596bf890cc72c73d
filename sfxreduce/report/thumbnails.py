"""Which events a report shows, and their pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.report.figures import Thumbnail, assembled_png
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import PeakFinder

__all__ = ["choose_events", "make_thumbnails"]

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
