"""What the frames of a run say of its decisions: the checks, and a second opinion on rejects.

All of it can only veto: it turns rejects into undecided events, which are kept, and never the other
way round. `sfxreduce.decisions.drift` says what is an alarm.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

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
from sfxreduce.decisions.assurance import Check
from sfxreduce.decisions.decide import Decision, Decisions, blank_peaks
from sfxreduce.decisions.drift import (
    MOST_FRAMES,
    conditions_check,
    opinion_check,
    range_check,
    sampled_events,
    shape_check,
    window_check,
)
from sfxreduce.decisions.method import Method
from sfxreduce.pipeline.stages.batch import SOURCE_LOST, read_here_alone
from sfxreduce.quality.frame_statistics import QUANTITIES, frame_statistics
from sfxreduce.run.reasons import UNREAD, UNSAFE, Reason
from sfxreduce.run.run import FrameSource, Run
from sfxreduce.scorers.calibration.record import Calibration
from sfxreduce.scorers.peaks.finder import MIN_PEAKS, PeakScorer
from sfxreduce.scorers.protocol import Scorer, calibration_of

__all__ = ["check_run", "fall_back"]

MOST_REJECTS = 256
"""Best-scoring rejects that are looked at, at most."""

_FRAMES_PER_TASK = 4
_SEED = 20  # of the rejects that are drawn at random


@dataclass(frozen=True, slots=True, kw_only=True)
class _WholeFrames:
    """Some whole frames to measure and to search for peaks."""

    source: FrameSource
    events: tuple[int, ...]


_SEEN = np.dtype(
    [
        ("reason", "<u4"),
        ("n_peaks", "<i4"),
        ("off_rings", "<i4"),
        ("statistics", "<f8", len(QUANTITIES)),
    ]
)
"""What was seen of a frame; the rest means nothing where there is a reason."""


def check_run(
    run: Run,
    scorer: Scorer,
    decisions: Decisions,
    method: Method,
    *,
    fewest_peaks: int = MIN_PEAKS,
    max_loss: float,
    pool: Pool,
    notes: Notes = NO_NOTES,
    progress: Progress = silent,
) -> tuple[dict[str, Check], Decisions]:
    """Compare a run with what its scorer was calibrated on, and ask the peak finder about rejects.

    Rejects with clearly more peaks off powder rings than the run's blanks are kept; where a check
    does not pass, so is every reject with as many peaks as a hit has by the peak finder's rule.

    Parameters
    ----------
    run : Run
        With its conditions, if the scorer needs them.
    fewest_peaks : int
        Peaks of a reject that is kept for them; 0 keeps none.
    max_loss : float
        Share of the hits that may be lost.
    notes : Notes
        Of the looks at every reject.

    Returns
    -------
    tuple of dict and Decisions
        The checks by the names of `sfxreduce.decisions.assurance.CHECKS`; none for a scorer with
        nothing that could differ, and for a run without events.
    """
    known = calibration_of(scorer, run.detector)
    if known.reference is None or not run.n_events:
        return {}, decisions
    frames = _Frames(run=run, pool=pool)
    measured = frames.look(sampled_events(run.n_events))
    opinion, decisions = _second_opinion(
        frames, decisions, fewest_peaks=fewest_peaks, max_loss=max_loss
    )
    checks = {
        "shape": _shape(decisions, known),
        "conditions": conditions_check(
            known.reference,
            measured["statistics"][measured["reason"] == 0],
            adu_per_photon=run.detector.adu_per_photon,
        ),
        "second_opinion": opinion,
        "window": _window(method, known),
        "range": range_check(known.reference, decisions.peaks, decisions.peak_width_px),
    }
    if any(check.saves and not check.passed for check in checks.values()):
        decisions = fall_back(run, decisions, pool=pool, notes=notes, progress=progress)
    return checks, decisions


def _window(method: Method, known: Calibration) -> Check:
    """Judge the tiles by which hits are told."""
    return window_check(
        n_tiles=method.window_tiles or 0,
        is_calibrated=known.fits_window,
        highest=known.highest,
        threshold=method.threshold,
    )


def _shape(decisions: Decisions, known: Calibration) -> Check:
    """Compare the scores of events that could be judged with the calibrated ones."""
    if known.reference is None:
        return Check()
    scores = decisions.score
    if known.first_look is not None:
        # Of every event alike, whatever else was looked at.
        scores = known.first_look.most(decisions.first)
    move = known.level.move(scores)
    # An event that is unlike the calibrated ones has a score all the same, and is what to look for.
    doubts = np.uint32(UNSAFE & ~(Reason.OUT_OF_DISTRIBUTION | Reason.PEAK_COUNT))
    judgeable = (decisions.reason & doubts) == 0
    return shape_check(
        known.reference,
        known.level.reduced(scores[judgeable], move),
        n_hits=decisions.count(Decision.HIT),
        n_rejected=decisions.count(Decision.REJECT),
    )


def _second_opinion(
    frames: _Frames, decisions: Decisions, *, fewest_peaks: int, max_loss: float
) -> tuple[Check, Decisions]:
    """Let the peak finder look at rejects: some at random, and the best as long as it objects."""
    rejects = np.flatnonzero(decisions.decision == Decision.REJECT)
    drawn = np.random.default_rng(_SEED).permutation(rejects)[:MOST_FRAMES]
    at_random = frames.look(np.sort(drawn).tolist())
    read = at_random[at_random["reason"] == 0]
    most, fewest = blank_peaks(read["off_rings"]), fewest_peaks or MIN_PEAKS

    def is_call(seen: NDArray[np.void]) -> NDArray[np.bool_]:
        calls: NDArray[np.bool_] = (
            (seen["reason"] == 0) & (seen["off_rings"] >= fewest) & (seen["off_rings"] > most)
        )
        return calls

    order = rejects[np.argsort(-decisions.score[rejects], kind="stable")][:MOST_REJECTS]
    called = [drawn[:0], np.sort(drawn)[is_call(at_random)]]
    n_looked, capped = 0, False
    for start in range(0, order.size, MOST_FRAMES):
        batch = order[start : start + MOST_FRAMES]
        seen = frames.look(batch.tolist())
        n_looked += int(np.count_nonzero(seen["reason"] == 0))
        calls = batch[is_call(seen)]
        called.append(calls)
        capped = calls.size > 0 and start + MOST_FRAMES >= MOST_REJECTS
        if not calls.size:
            break
    events = np.unique(np.concatenate(called))
    kept = decisions.count(Decision.HIT) + int(
        np.count_nonzero(decisions.reason & np.uint32(Reason.PEAK_COUNT))
    )
    n_missed = float(events.size)
    n_random = called[1].size
    if capped or n_random:
        n_missed = max(n_missed, n_random / max(read.size, 1) * rejects.size)
    check = opinion_check(
        n_looked=max(n_looked, read.size),
        n_rejected=rejects.size,
        n_called=events.size,
        implied_loss=n_missed / max(n_missed + kept, 1.0),
        max_loss=max_loss,
    )
    if not fewest_peaks:
        return check, decisions
    return check, _kept(decisions, events, np.uint32(Reason.PEAK_COUNT))


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
    doubted = (seen["n_peaks"] >= MIN_PEAKS) | (seen["reason"] != 0)
    reasons = seen["reason"][doubted] | np.uint32(Reason.UNLIKE_CALIBRATION)
    return _kept(decisions, events[doubted], reasons)


def _kept(
    decisions: Decisions, events: NDArray[np.int64], reasons: NDArray[np.uint32] | np.uint32
) -> Decisions:
    """Keep rejects as undecided, for these reasons."""
    decision, reason = decisions.decision.copy(), decisions.reason.copy()
    decision[events] = Decision.UNDECIDED
    reason[events] |= reasons
    return replace(decisions, decision=decision, reason=reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frames:
    """Whole frames of a run, each looked at once."""

    run: Run
    pool: Pool
    known: dict[int, np.void] = field(default_factory=dict)

    def look(self, events: list[int]) -> NDArray[np.void]:
        """What is seen on some frames, in the order of the events."""
        new = [event for event in events if event not in self.known]
        self.known.update(zip(new, _look(self.run, new, pool=self.pool), strict=True))
        return np.array([self.known[event] for event in events], _SEEN)


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

    looks = each_once(notes, "drift", len(groups), work, dtype=_SEEN, is_open=_with_unread)
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
    counts, off_rings = finder.count_apart(frames, detector)
    # A frame that shows too little to count on is not for a machine to reject.
    uncounted = np.where(np.isnan(counts), np.uint32(Reason.SCORE_INVALID), np.uint32(0))
    seen["reason"][read] = uncounted
    seen["n_peaks"][read], seen["off_rings"][read] = map(np.nan_to_num, (counts, off_rings))
    seen["statistics"][read] = frame_statistics(
        frames,
        detector.good(),
        adu_per_photon=detector.adu_per_photon,
        saturation_adu=detector.saturation_adu,
    )
    return seen


def _with_unread(seen: NDArray[np.void]) -> bool:
    """Whether some of the frames could not be read."""
    return bool((seen["reason"] & np.uint32(UNREAD)).any())


def _doubted(look: _WholeFrames, seen: NDArray[np.void]) -> bool:
    """Whether a frame can be read here of which a worker says that it cannot."""
    return read_here_alone(look.source, look.events, seen["reason"])


def _halves(look: _WholeFrames) -> list[_WholeFrames]:
    return [replace(look, events=events) for events in halves_of(look.events)]


def _lost(look: _WholeFrames) -> NDArray[np.void]:
    """What is seen of a frame that ends whatever looks at it: nothing."""
    seen = np.zeros(len(look.events), _SEEN)
    seen["statistics"], seen["reason"] = np.nan, Reason.WORKER_LOST
    return seen


def _joined(_: _WholeFrames, parts: Sequence[NDArray[np.void]]) -> NDArray[np.void]:
    return np.concatenate(parts)


_RESCUE = Rescue(attempt=_look_at, halves=_halves, lost=_lost, joined=_joined, doubted=_doubted)
