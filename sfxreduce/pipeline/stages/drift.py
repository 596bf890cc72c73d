"""Similarity of a run to the calibration data, and the peak finder's second opinion on alarm.

The check can only veto: it turns rejects into undecided events, which are kept, and never the other
way round. `sfxreduce.decisions.drift` says what is an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import (
    NO_NOTES,
    Notes,
    Progress,
    Rescue,
    each_once,
    halves_of,
    silent,
    tracked,
)
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.drift import Drift, Sample, judge_drift, sampled_events
from sfxreduce.pipeline.stages.batch import SOURCE_LOST, closed_early
from sfxreduce.quality.frame_statistics import QUANTITIES, frame_statistics
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import FrameSource, Run
from sfxreduce.scorers.peaks.scorer import PeakScorer
from sfxreduce.scorers.protocol import Scorer, calibration_of

__all__ = ["check_drift", "check_similarity", "fall_back"]

_FRAMES_PER_TASK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _WholeFrames:
    """Some whole frames to measure and to search for peaks."""

    source: FrameSource
    events: tuple[int, ...]


_SEEN = np.dtype([("reason", "<u4"), ("is_hit", "?"), ("statistics", "<f8", len(QUANTITIES))])
"""What was seen of a frame; the rest means nothing where there is a reason."""


def check_similarity(
    run: Run,
    scorer: Scorer,
    decisions: Decisions,
    *,
    closed_from: float,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> tuple[Drift, Decisions]:
    """Compare a run with the calibration data; on alarm, reject only what `fall_back` lets go.

    See `check_drift` for the parameters.
    """
    drift = check_drift(run, scorer, decisions, closed_from=closed_from, pool=pool)
    if drift.alarms:
        decisions = fall_back(run, decisions, pool=pool, notes=notes, progress=progress)
    return drift, decisions


def check_drift(
    run: Run, scorer: Scorer, decisions: Decisions, *, closed_from: float = math.inf, pool: Pool
) -> Drift:
    """Compare a run with what its scorer was calibrated on; at most 32 frames are read, once.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    decisions : Decisions
        Of the scorer alone.
    closed_from : float
        Scores from there on say no more than that: their events were not looked at any further.

    Returns
    -------
    Drift
        Not checked where the scorer has nothing that could drift.
    """
    known = calibration_of(scorer)
    reference = known.reference
    if reference is None or not run.n_events:
        return Drift()
    events = sampled_events(run.n_events)
    seen = _look(run, events, pool=pool)
    read = seen["reason"] == 0
    rejected = decisions.decision[events] == Decision.REJECT
    sample = Sample(
        statistics=seen["statistics"][read],
        n_disagreeing=int(np.count_nonzero(read & seen["is_hit"] & rejected)),
        adu_per_photon=run.detector.adu_per_photon,
    )
    move = known.level.move(decisions.score)
    # An event that is unlike the calibrated ones has a score all the same, and is what to look for.
    judgeable = (decisions.reason & ~np.uint32(Reason.OUT_OF_DISTRIBUTION)) == 0
    judged = known.level.reduced(decisions.score[judgeable], move)
    tiles = decisions.tiles
    if tiles is not None and closed_early(tiles, scorer, run.detector).any():
        highest = float(known.level.reduced([closed_from], move)[0])
        reference, judged = reference.up_to(highest), np.minimum(judged, highest)
    return judge_drift(reference, judged, sample)


def fall_back(
    run: Run,
    decisions: Decisions,
    *,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> Decisions:
    """Reject only what the peak finder, on the whole frame, does not call a hit either.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    decisions : Decisions
        Of the scorer alone.
    notes : Notes
        What was seen already, and where to note more.

    Returns
    -------
    Decisions
        With `Reason.UNLIKE_CALIBRATION` on every event that is kept for this.
    """
    events = np.flatnonzero(decisions.decision == Decision.REJECT)
    seen = _look(run, events.tolist(), pool=pool, notes=notes, progress=progress)
    doubted = seen["is_hit"] | (seen["reason"] != 0)
    decision, reason = decisions.decision.copy(), decisions.reason.copy()
    decision[events[doubted]] = Decision.UNDECIDED
    reason[events[doubted]] |= seen["reason"][doubted] | np.uint32(Reason.UNLIKE_CALIBRATION)
    return replace(decisions, decision=decision, reason=reason)


def _look(
    run: Run,
    events: list[int],
    *,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> NDArray[np.void]:
    """Look at whole frames, a few in each task, and put what was seen in order."""
    groups = [
        _WholeFrames(source=run.source, events=tuple(events[start : start + _FRAMES_PER_TASK]))
        for start in range(0, len(events), _FRAMES_PER_TASK)
    ]

    def work(left: Sequence[int]) -> Iterator[tuple[int, NDArray[np.void]]]:
        return pool.map("drift", _look_at, [groups[number] for number in left], rescue=_RESCUE)

    looks = each_once(notes, "drift", len(groups), work, dtype=_SEEN)
    found = dict(tracked(looks, stage="drift", total=len(groups), progress=progress))
    return np.concatenate([np.zeros(0, _SEEN), *(found[number] for number in range(len(groups)))])


def _look_at(look: _WholeFrames) -> NDArray[np.void]:
    """Read some frames once; measure them, and let the peak finder judge them."""
    seen = np.zeros(len(look.events), _SEEN)
    seen["statistics"] = np.nan
    try:
        detector = look.source.detector
        reading = look.source.read(look.events)
    except SOURCE_LOST:
        seen["reason"] = Reason.FILE_UNREADABLE
        return seen
    seen["reason"], read = reading.reasons, reading.reasons == 0
    frames, finder = reading.pixels[read], PeakScorer()
    seen["is_hit"][read] = finder(frames, detector) >= finder.min_peaks
    seen["statistics"][read] = frame_statistics(
        frames,
        detector.good(),
        adu_per_photon=detector.adu_per_photon,
        saturation_adu=detector.saturation_adu,
    )
    return seen


def _halves(look: _WholeFrames) -> list[_WholeFrames]:
    return [replace(look, events=events) for events in halves_of(look.events)]


def _lost(look: _WholeFrames) -> NDArray[np.void]:
    """What is seen of a frame that ends whatever looks at it: nothing."""
    seen = np.zeros(len(look.events), _SEEN)
    seen["statistics"], seen["reason"] = np.nan, Reason.WORKER_LOST
    return seen


def _joined(_: _WholeFrames, parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    return np.concatenate(parts)


_RESCUE = Rescue(attempt=_look_at, halves=_halves, lost=_lost, joined=_joined)
