"""One batch of events: read their tiles, inspect the pixels, score what can be scored.

A scorer that looks at a few tiles first knows by them between which bounds the score of an event
lies. Of the other tiles some blocks are read, after every byte of them was compared with its
checksum: what is missing, dark, hot or saturated there has to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decisions.decide import ScoreBound
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.chunks.shards import pixel_hash
from sfxreduce.quality.events import inspect_pixels
from sfxreduce.quality.panels import Parts, inspect_parts, parts_of, parts_of_samples
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import UNREAD, Reason
from sfxreduce.run.run import (
    FrameSource,
    Reading,
    Samples,
    decoded_share,
    events_per_chunk,
    read_into,
    samples_of,
)
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import (
    NOT_COUNTED,
    Classifier,
    EventScores,
    LooksFirst,
    Scorer,
    Streamer,
    needs_gpu,
)

__all__ = [
    "SCORE_DTYPE",
    "SOURCE_LOST",
    "first_window_of",
    "read_here_alone",
    "score_events",
    "unscored_rows",
]

SCORE_DTYPE = np.dtype(
    [
        ("score", "<f4"),
        ("first", "<f4"),
        ("bound", "u1"),
        ("reason", "<u4"),
        ("tiles", "<u2"),
        ("class", "u1"),
        ("peaks", "<i2"),
        ("width_px", "<f4"),
        ("seen", "<u8"),
    ]
)
"""One row per event: the scorer's value, that of its first tiles (the same where all are looked at
together), what the value is to the score (`ScoreBound`), `Reason` bits, how many tiles of the
window it rests on (0 for whole source frames), the class if the scorer tells one, the peaks on the
first tiles and their median width if it counts them, and the `pixel_hash` of the tiles that were
read (0 where not one was)."""

SOURCE_LOST = (RunNotFound, SchemaError, SourceError)
"""What a source raises that was there when the run was opened and can no longer be read."""

BYTES_AT_ONCE = 16 << 20
"""Pixels that are looked at together: more of them leave the processor's cache, and memory should
not depend on the size of a frame."""

BYTES_LOOKED_AT = 8 << 20
"""First tiles that are read, inspected and searched before the next are read: while they are near
the processor. What takes time for every call stands against fewer. Chosen among 2 to 35 MB."""

BYTES_READ_AT_ONCE = 32 << 20
"""Pixels that are read together: a file is opened for all of them, and no chunk is decoded twice.
Of a larger chunk each such part is read by itself. Chosen: a worker with 1 GiB holds the chunk and
its pixels."""

WORTH_IT = 0.75
"""Share of what all tiles cost to decode, up to which the first are looked at for themselves.
Chosen, not measured: the others are sampled besides."""


def first_window_of(source: FrameSource, scorer: Scorer, detector: Detector) -> Window | None:
    """Tiles that are looked at first; None where all of them are looked at together.

    Parameters
    ----------
    source : FrameSource
        To read a few tiles of it must cost clearly less than to read all.
    """
    first = scorer.first_window(detector) if isinstance(scorer, LooksFirst) else None
    window = scorer.window(detector)
    if first is None or window is None or samples_of(source, first, window) is None:
        return None
    pays = decoded_share(source, first) <= WORTH_IT * decoded_share(source, window)
    return first if pays else None


def score_events(
    source: FrameSource, scorer: Scorer, events: range, *, first: bool = False
) -> NDArray[np.void]:
    """Score some events.

    Parameters
    ----------
    events : range
        Positions in the run.
    first : bool
        Look at the first tiles only, where that can be; see `first_window_of`.

    Returns
    -------
    ndarray
        Shape (event,), dtype `SCORE_DTYPE`. The score is NaN where an event could not be read.
    """
    rows = unscored_rows(len(events))
    # The run was whole when it was opened. A source that is gone now costs the scores of its
    # events, not the run: they are kept as undecided.
    rows["reason"] = Reason.FILE_UNREADABLE
    try:
        detector = source.detector
    except SOURCE_LOST:
        return rows
    window = scorer.window(detector)
    batch = _BatchReader(source=source, scorer=scorer, detector=detector, window=window)
    if isinstance(scorer, Streamer) and needs_gpu(scorer):
        batch.as_a_stream(scorer, events, rows)
        return rows
    tiles = first_window_of(source, scorer, detector) if first else None
    if tiles is not None and isinstance(scorer, LooksFirst):
        batch.by_first_tiles(scorer, tiles, events, rows)
        return rows
    for part in _parts_of(len(events), batch.events_read_at_once(window)):
        batch.at_once(events[part], rows[part])
    return rows


def _parts_of(n_events: int, step: int) -> Iterator[slice]:
    """So many events after the other."""
    for start in range(0, n_events, step):
        yield slice(start, min(start + step, n_events))


def read_here_alone(
    source: FrameSource,
    events: Sequence[int],
    reasons: NDArray[np.uint32],
    window: Window | None = None,
) -> bool:
    """Whether this process can read any event of which somebody else says that nobody can.

    Parameters
    ----------
    reasons : ndarray of uint32
        What was said, `Reason` bits, shape (event,).
    """
    for place in np.flatnonzero(reasons & np.uint32(UNREAD)).tolist():
        try:
            if not source.read([events[place]], window).reasons[0] & np.uint32(UNREAD):
                return True
        except SOURCE_LOST:
            continue
    return False


def unscored_rows(n_events: int) -> NDArray[np.void]:
    """Rows of events of which nothing is known."""
    rows = np.zeros(n_events, SCORE_DTYPE)
    rows["score"] = rows["first"] = rows["width_px"] = np.nan
    rows["peaks"] = NOT_COUNTED
    return rows


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _BatchReader:
    """A scorer before a source, and the window between them; None for whole frames."""

    source: FrameSource
    scorer: Scorer
    detector: Detector
    window: Window | None

    def n_bytes(self, window: Window | None) -> int:
        """Bytes that one event shows through a window."""
        shape = self.detector.frame_shape if window is None else window.shape
        return int(math.prod(shape)) * np.dtype(self.source.dtype).itemsize

    def events_at_once(self, window: Window | None) -> int:
        """How many are looked at together through a window."""
        return max(1, BYTES_AT_ONCE // self.n_bytes(window))

    def events_read_at_once(self, window: Window | None) -> int:
        """How many are read together: whole chunks, if one is not too large."""
        most, of_chunk = BYTES_READ_AT_ONCE // self.n_bytes(window), events_per_chunk(self.source)
        return max(most - most % of_chunk if most > of_chunk else most, 1)

    def at_once(self, events: Sequence[int], rows: NDArray[np.void]) -> None:
        """Look at the whole window of a few events."""
        reading = self._read(events)
        for part in _parts_of(len(events), self.events_at_once(self.window)):
            self._score(reading.pixels[part], reading.reasons[part], rows[part])

    def _score(
        self, pixels: NDArray[np.generic], reasons: NDArray[np.uint32], rows: NDArray[np.void]
    ) -> None:
        """Score events by their whole window."""
        places = np.flatnonzero(self._note(rows, pixels, reasons))
        if not places.size:
            return
        if places.size < len(rows):
            pixels = pixels[places]
        if isinstance(self.scorer, Classifier):
            self._write(rows, places, self.scorer.classify(pixels, self.detector))
        else:
            rows["score"][places] = rows["first"][places] = self.scorer(pixels, self.detector)

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

    def by_first_tiles(
        self, scorer: LooksFirst, first: Window, events: Sequence[int], rows: NDArray[np.void]
    ) -> None:
        """Look at the first tiles of events, and at samples of the others.

        What is odd about either is not a reason by itself: such an event has to be seen whole.
        """
        doubts = np.zeros(len(rows), np.uint32)
        scores = scorer.look_first(self._first_tiles(first, events, rows, doubts), self.detector)
        places = np.flatnonzero(rows["reason"] == 0)
        rows["tiles"][places], rows["bound"][places] = len(first.origins), ScoreBound.AT_MOST
        doubts[places] |= scores.reason
        self._write(rows, places, scores._replace(reason=np.zeros_like(scores.reason)))
        doubted = places[doubts[places] != 0]
        rows["reason"][doubted] |= np.uint32(Reason.DOUBTED_AT_FIRST)

    def _first_tiles(
        self,
        first: Window,
        events: Sequence[int],
        rows: NDArray[np.void],
        doubts: NDArray[np.uint32],
    ) -> Iterator[NDArray[np.generic]]:
        """First tiles of the events that can be read, a few at a time, each where the last lay.

        What keeps events from being read is written into `rows`, where it says already that they
        cannot be; what is odd into `doubts`.
        """
        source, window = self.source, self.window
        # See `first_window_of`.
        assert isinstance(source, Samples) and window is not None  # noqa: S101, PT018
        step = min(max(1, BYTES_LOOKED_AT // self.n_bytes(first)), len(events))
        room = np.empty((step, *first.shape), source.dtype)
        with suppress(*SOURCE_LOST):
            sampled = source.sampled(first, window)
            assert sampled is not None  # noqa: S101
            parts, good = parts_of_samples(self.detector, sampled)
            readings = source.read_first(events, first, window, room)
            for part, reading in zip(_parts_of(len(events), step), readings, strict=True):
                rows["reason"][part] = reading.reasons
                doubts[part] = self._odd_in(reading.pixels, good, parts)
                places, pixels = np.flatnonzero(reading.reasons == 0), room[: len(reading.reasons)]
                if places.size:
                    seen = pixels if places.size == len(pixels) else pixels[places]
                    rows["seen"][part.start + places] = [pixel_hash(event) for event in seen]
                    doubts[part.start + places] |= self._oddities(seen, first)
                    yield seen

    @staticmethod
    def _write(rows: NDArray[np.void], places: NDArray[np.integer], scores: EventScores) -> None:
        """Write down what a scorer says of the events at some places."""
        rows["score"][places], rows["class"][places] = scores.score, scores.kind
        rows["first"][places] = scores.score if scores.first is None else scores.first
        rows["peaks"][places], rows["width_px"][places] = scores.peaks, scores.width_px
        rows["reason"][places] |= scores.reason

    def _read(self, events: Sequence[int]) -> Reading:
        """Read the whole window of events."""
        shape = self.detector.frame_shape if self.window is None else self.window.shape
        pixels = np.zeros((len(events), *shape), self.source.dtype)
        try:
            reasons = read_into(self.source, events, self.window, pixels)
        except SOURCE_LOST:
            reasons = np.full(len(events), Reason.FILE_UNREADABLE, np.uint32)
        return Reading(pixels=pixels, reasons=reasons)

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
        return self._odd_in(pixels, good, parts_of(detector, window))

    def _odd_in(
        self, pixels: NDArray[np.generic], good: NDArray[np.bool_], parts: Parts
    ) -> NDArray[np.uint32]:
        saturation = self.detector.saturation_adu
        gain = self.detector.adu_per_photon
        found: NDArray[np.uint32] = inspect_pixels(
            pixels, good, saturation_adu=saturation
        ) | inspect_parts(pixels, parts, saturation_adu=saturation, adu_per_photon=gain)
        return found
