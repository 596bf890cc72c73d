"""One batch of events: read their tiles, inspect the pixels, score what can be scored.

A scorer whose score only rises with every further tile reads a few tiles first. An event that is a
hit by then stays one: its other tiles are not read. All other events are scored on the whole
window, so that no reject rests on less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.chunks.shards import pixel_hash
from sfxreduce.quality.events import inspect_pixels
from sfxreduce.quality.panels import inspect_parts, parts_of
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import FrameSource, read_into
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import (
    NOT_COUNTED,
    Classifier,
    EventScores,
    OpenEvent,
    Scorer,
    Stepwise,
    Streamer,
    needs_gpu,
)

__all__ = ["SCORE_DTYPE", "SOURCE_LOST", "closed_early", "rechecked", "reopened", "score_events"]

SCORE_DTYPE = np.dtype(
    [
        ("score", "<f4"),
        ("reason", "<u4"),
        ("tiles", "<u2"),
        ("class", "u1"),
        ("peaks", "<i2"),
        ("width_px", "<f4"),
        ("seen", "<u8"),
    ]
)
"""One row per event: the scorer's value, `Reason` bits, how many tiles of the window the value
rests on (0 for whole source frames), the class if the scorer tells one, the peaks on these tiles
and their median width if it counts them, and the `pixel_hash` of these tiles (0 where not one was
read)."""

SOURCE_LOST = (RunNotFound, SchemaError, SourceError)
"""What a source raises that was there when the run was opened and can no longer be read."""

BYTES_AT_ONCE = 16 << 20
"""Pixels that are looked at together: more of them leave the processor's cache, and memory should
not depend on the size of a frame."""


def score_events(
    source: FrameSource, scorer: Scorer, events: range, *, closed_from: float = np.inf
) -> NDArray[np.void]:
    """Score some events.

    Parameters
    ----------
    events : range
        Positions in the run.
    closed_from : float
        An event with such a score is a hit whatever its other tiles show.

    Returns
    -------
    ndarray
        Shape (event,), dtype `SCORE_DTYPE`. The score is NaN where an event could not be read.
    """
    rows = np.zeros(len(events), SCORE_DTYPE)
    rows["score"] = rows["width_px"] = np.nan
    rows["peaks"] = NOT_COUNTED
    # The run was whole when it was opened. A source that is gone now costs the scores of its
    # events, not the run: they are kept as undecided.
    rows["reason"] = Reason.FILE_UNREADABLE
    try:
        detector = source.detector
    except SOURCE_LOST:
        return rows
    batch = _BatchReader(
        source=source, scorer=scorer, detector=detector, window=scorer.window(detector)
    )
    if isinstance(scorer, Streamer) and needs_gpu(scorer):
        batch.as_a_stream(scorer, events, rows)
        return rows
    steps = scorer.steps(detector) if isinstance(scorer, Stepwise) else ()
    if isinstance(scorer, Stepwise) and len(steps) > 1 and closed_from < np.inf:
        for row, event in zip(rows, events, strict=True):
            batch.in_steps(event, scorer.begin(detector), steps, row, closed_from=closed_from)
        return rows
    for start in range(0, len(events), batch.events_at_once):
        part = slice(start, start + batch.events_at_once)
        batch.at_once(events[part], rows[part])
    return rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _BatchReader:
    """A scorer before a source, and the window between them; None for whole frames."""

    source: FrameSource
    scorer: Scorer
    detector: Detector
    window: Window | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the pixels of one event."""
        return self.detector.frame_shape if self.window is None else self.window.shape

    @property
    def events_at_once(self) -> int:
        """How many are looked at together."""
        n_bytes = math.prod(self.shape) * np.dtype(self.source.dtype).itemsize
        return max(1, BYTES_AT_ONCE // n_bytes)

    def at_once(self, events: Sequence[int], rows: NDArray[np.void]) -> None:
        """Look at the whole window of a few events."""
        pixels, readable = self._read(events, rows)
        places = np.flatnonzero(readable)
        if pixels is None or not places.size:
            return
        if places.size < len(rows):
            pixels = pixels[places]
        if isinstance(self.scorer, Classifier):
            self._write(rows, places, self.scorer.classify(pixels, self.detector))
        else:
            rows["score"][places] = self.scorer(pixels, self.detector)

    def as_a_stream(self, scorer: Streamer, events: range, rows: NDArray[np.void]) -> None:
        """Let a scorer have events read on its own threads, while its device works."""
        dtype = np.dtype(self.source.dtype)
        readable = np.zeros(len(rows), np.bool_)

        def read(part: range, pixels: NDArray[np.generic]) -> None:
            where = slice(part.start, part.stop)
            pixels[...] = 0
            try:
                reasons = read_into(self.source, events[where], self.window, pixels)
            except SOURCE_LOST:
                return
            readable[where] = self._note(rows[where], pixels, reasons)

        scores = scorer.stream(read, n_events=len(rows), dtype=dtype, detector=self.detector)
        places = np.flatnonzero(readable)
        self._write(rows, places, scores.of_events(places))

    def in_steps(
        self,
        event: int,
        open_event: OpenEvent,
        steps: Sequence[Window],
        row: np.void,
        *,
        closed_from: float,
    ) -> None:
        """Look at one event until it is a hit or all of its window was seen."""
        pixels = np.zeros((1, *self.shape), self.source.dtype)
        seen = 0
        for step in steps:
            part = pixels[:, seen : seen + len(step.origins)]
            try:
                row["reason"] = read_into(self.source, [event], step, part)[0]
            except SOURCE_LOST:
                row["reason"] = Reason.FILE_UNREADABLE
            if row["reason"]:
                row["score"] = row["width_px"] = np.nan
                row["tiles"], row["class"], row["peaks"] = 0, 0, NOT_COUNTED
                return
            open_event.add(part)
            seen += len(step.origins)
            known = open_event.so_far()
            row["score"], row["class"] = known.score[0], known.kind[0]
            row["peaks"], row["width_px"] = known.peaks[0], known.width_px[0]
            row["tiles"] = seen
            if row["score"] >= closed_from:
                break
        row["seen"] = pixel_hash(pixels[0, :seen])
        window = self.window if seen == pixels.shape[1] else steps[0]
        row["reason"] |= known.reason[0] | self._oddities(pixels[:, :seen], window)[0]

    @staticmethod
    def _write(rows: NDArray[np.void], places: NDArray[np.integer], scores: EventScores) -> None:
        """Write down what a scorer says of the events at some places."""
        rows["score"][places], rows["class"][places] = scores.score, scores.kind
        rows["peaks"][places], rows["width_px"][places] = scores.peaks, scores.width_px
        rows["reason"][places] |= scores.reason

    def _read(
        self, events: Sequence[int], rows: NDArray[np.void]
    ) -> tuple[NDArray[np.generic] | None, NDArray[np.bool_]]:
        """Pixels of some events, and which of them mean something; what is odd goes to the rows."""
        try:
            reading = self.source.read(events, self.window)
        except SOURCE_LOST:
            return None, np.zeros(len(rows), np.bool_)
        return reading.pixels, self._note(rows, reading.pixels, reading.reasons)

    def _note(
        self, rows: NDArray[np.void], pixels: NDArray[np.generic], reasons: NDArray[np.uint32]
    ) -> NDArray[np.bool_]:
        """Write down what is odd about some events; which of them mean something."""
        rows["reason"] = reasons
        readable: NDArray[np.bool_] = reasons == 0
        if readable.any():
            rows["tiles"][readable] = 0 if self.window is None else len(self.window.origins)
            seen = pixels if readable.all() else pixels[readable]
            rows["seen"][readable] = [pixel_hash(event) for event in seen]
            rows["reason"][readable] |= self._oddities(seen, self.window)
        return readable

    def _oddities(self, pixels: NDArray[np.generic], window: Window | None) -> NDArray[np.uint32]:
        """Reasons not to trust a score, event by event."""
        detector = self.detector
        good = detector.good() if window is None else window.good(detector)
        saturation = detector.saturation_adu
        found: NDArray[np.uint32] = inspect_pixels(
            pixels, good, saturation_adu=saturation
        ) | inspect_parts(
            pixels,
            parts_of(detector, window),
            saturation_adu=saturation,
            adu_per_photon=detector.adu_per_photon,
        )
        return found


def closed_early(
    tiles: NDArray[np.uint16], scorer: Scorer, detector: Detector
) -> NDArray[np.bool_]:
    """Which events were closed before all of their window was seen.

    Parameters
    ----------
    tiles : ndarray of uint16
        Tiles that each score rests on, shape (event,).
    """
    window = scorer.window(detector)
    n_tiles = 0 if window is None else len(window.origins)
    early: NDArray[np.bool_] = (tiles > 0) & (tiles < n_tiles)
    return early


def reopened(
    rows: NDArray[np.void], scorer: Scorer, detector: Detector, *, closed_from: float
) -> NDArray[np.bool_]:
    """Which events were closed by a score that no longer closes them.

    Parameters
    ----------
    rows : ndarray
        Shape (event,), dtype `sfxreduce.pipeline.stages.batch.SCORE_DTYPE`.
    closed_from : float
        Score that closes an event now.
    """
    found: NDArray[np.bool_] = closed_early(rows["tiles"], scorer, detector) & (
        rows["score"] < closed_from
    )
    return found


def rechecked(
    rows: NDArray[np.void], scorer: Scorer, detector: Detector, *, closed_from: float
) -> NDArray[np.bool_]:
    """Which events were seen whole, and may now be closed by their first tiles.

    Those scored below what closed an event then, and no higher than all tiles do. So an event need
    not be looked at if less closed an event then than now, or if its score does not close it now.
    One that could not be read whole has no score, and yet its first tiles may be whole.

    Parameters
    ----------
    rows, scorer, detector, closed_from
        See `reopened`.
    """
    if not isinstance(scorer, Stepwise) or len(scorer.steps(detector)) < 2:
        return np.zeros(len(rows), np.bool_)
    early = closed_early(rows["tiles"], scorer, detector)
    # What closed an event then is not known; it was no more than any score that did.
    at_most = rows["score"][early].min(initial=np.inf)
    found: NDArray[np.bool_] = ~early & ~(rows["score"] < closed_from) & (closed_from < at_most)
    return found
