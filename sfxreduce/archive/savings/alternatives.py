"""What other ways would have saved of a run, measured on a few of its frames.

This is the one part of a report of savings that reads pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sfxreduce.archive.savings.run_case import RunCase
from sfxreduce.archive.savings.store_bytes import stored_events_bytes
from sfxreduce.archive.savings.values import Alternatives
from sfxreduce.decisions.decide import Decision
from sfxreduce.io.chunks.blosc import DENSE_PACKING
from sfxreduce.io.chunks.shards import packed_bytes
from sfxreduce.io.open import open_run
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import PeakScorer

__all__ = ["MOST_RUNS", "SAMPLE_EVENTS", "measure_alternatives"]

SAMPLE_EVENTS = 100
"""Events that are drawn of a run."""

MOST_RUNS = 4
"""Runs up to which alternatives are measured without being asked for."""

SEED = 20260
FRAMES_AT_ONCE = 8


def measure_alternatives(case: RunCase, *, sample: int) -> Alternatives | None:
    """Draw events of a run, pack them anew, and count their peaks.

    Parameters
    ----------
    sample : int
        Events to draw, all of them if the run has fewer; the draw is the same every time.

    Returns
    -------
    Alternatives or None
        None if the run is not on the disk, which is noted.

    Raises
    ------
    SfxReduceError
        If it cannot be opened.
    """
    path = case.target.run
    if not path.exists():
        case.notes.append("alternatives not measured: the run is not on the disk")
        return None
    run = open_run(path)
    chosen = np.random.default_rng(SEED).choice(
        run.n_events, min(sample, run.n_events), replace=False
    )
    return _measured(case, run, np.sort(chosen), raw_bytes=run.source.n_bytes)


def _measured(
    case: RunCase, run: Run, events: NDArray[np.int64], *, raw_bytes: int
) -> Alternatives:
    scorer = PeakScorer()
    good: list[int] = []
    recoded, is_peak_hit = 0, []
    for start in range(0, events.size, FRAMES_AT_ONCE):
        batch = events[start : start + FRAMES_AT_ONCE].tolist()
        reading = run.source.read(batch)
        read = np.flatnonzero(reading.reasons == 0)
        if not read.size:
            continue
        pixels = reading.pixels[read]
        recoded += sum(packed_bytes(frame) for frame in pixels)
        is_peak_hit += (scorer(pixels, run.detector) >= scorer.min_peaks).tolist()
        good += [batch[place] for place in read]
    stored = stored_events_bytes(Path(run.path), good)
    found = np.array(is_peak_hit, np.bool_)
    hits = np.zeros(found.size, np.bool_)
    if case.made is not None and case.made.decision.size == run.n_events:
        hits = case.made.decision[np.array(good, np.int64)] == Decision.HIT
    return Alternatives(
        sampled=events.size,
        read=len(good),
        seed=SEED,
        codec=f"blosc {DENSE_PACKING.cname} level {DENSE_PACKING.clevel}, {DENSE_PACKING.shuffle}",
        stored_bytes=round(raw_bytes * len(good) / run.n_events) if stored is None else stored,
        recoded_bytes=recoded,
        exact=stored is not None,
        peak_hits=int(found.sum()),
        min_peaks=scorer.min_peaks,
        hits=int(hits.sum()),
        hits_lost=int((hits & ~found).sum()),
        raw_bytes=raw_bytes,
    )
