"""Keep, reject or leave undecided: one decision for every event, and why.

A low score alone rejects no event with clearly more peaks than the run's blanks: what those look
like, the run tells itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce.run.reasons import UNSAFE, Reason
from sfxreduce.run.show import html_table

__all__ = ["Decision", "Decisions", "ScoreBound", "blank_peaks", "decide", "keep_by_peaks"]

FEWEST_BLANKS = 8
"""Events by which the peaks of a run's blanks are told. Chosen, not measured."""


class Decision(IntEnum):
    """What becomes of an event. Undecided events are kept."""

    REJECT = 0
    UNDECIDED = 1
    HIT = 2


class ScoreBound(IntEnum):
    """What a number is to the score of an event whose tiles were not all looked at."""

    EXACT = 0
    AT_LEAST = 1
    AT_MOST = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decisions:
    """The decision on every event of a run, in source order.

    Parameters
    ----------
    decision : ndarray of uint8
        `Decision` of each event.
    reason : ndarray of uint32
        `Reason` bits of each event.
    score : ndarray of float32
        The scorer's value; NaN where there is none.
    event_class : ndarray of uint8, optional
        `EventClass` of each event, where the scorer tells one. No decision rests on it.
    bound : ndarray of uint8
        `ScoreBound`: what the number is to the score of the event.
    first : ndarray of float32
        Score of the first tiles alone; the score where all tiles are looked at together.
    tiles : ndarray of uint16, optional
        Tiles of the window that each score rests on; 0 for scores of whole source frames.
    peaks : ndarray of int16
        Peaks by the conventional rule; -1 where they were not counted.
    peak_tiles : ndarray of uint16
        Tiles on which they were counted, the first ones; 0 for whole source frames.
    peak_width_px : ndarray of float32
        Their median width, a standard deviation; NaN where there are none.
    payload : ndarray of uint64, optional
        Shape (event, 2): high and low half of the XXH3 (128 bits) of each kept event's encoded
        tiles; zero for events of which nothing was kept.
    """

    decision: NDArray[np.uint8]
    reason: NDArray[np.uint32]
    score: NDArray[np.float32]
    event_class: NDArray[np.uint8] | None = None
    tiles: NDArray[np.uint16] | None = None
    bound: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    first: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    peaks: NDArray[np.int16] = field(default_factory=lambda: np.zeros(0, np.int16))
    peak_tiles: NDArray[np.uint16] = field(default_factory=lambda: np.zeros(0, np.uint16))
    peak_width_px: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    payload: NDArray[np.uint64] | None = None

    def __post_init__(self) -> None:
        # Scorers that count no peaks or see all tiles at once, and ledgers of earlier versions.
        n_events = self.score.size
        tiles = np.zeros(n_events, np.uint16) if self.tiles is None else self.tiles
        usual: dict[str, NDArray[Any]] = {
            "bound": np.full(n_events, ScoreBound.EXACT, np.uint8),
            "first": self.score,
            "peaks": np.full(n_events, -1, np.int16),
            "peak_tiles": tiles,
            "peak_width_px": np.full(n_events, np.nan, np.float32),
        }
        for name, values in usual.items():
            if getattr(self, name).size != n_events:
                object.__setattr__(self, name, values)

    @property
    def tiles_per_event(self) -> float | None:
        """Tiles that a score rests on, on average; None for scores of whole frames, or of none."""
        seen = np.zeros(0) if self.tiles is None else self.tiles[self.tiles > 0]
        return float(seen.mean()) if seen.size else None

    @property
    def kept(self) -> NDArray[np.int64]:
        """Positions of the events to keep, ascending."""
        return np.flatnonzero(self.decision != Decision.REJECT).astype(np.int64)

    def with_damage(self, events: NDArray[np.int64]) -> Decisions:
        """Return the same with `Reason.READ_ERROR` on kept events that could not be copied whole.

        Parameters
        ----------
        events : ndarray of int64
            Positions of the events; those with a reason already keep it as it is.
        """
        own = self.reason[events] & np.uint32(UNSAFE)
        return self._with(Reason.READ_ERROR, events[own == 0])

    def with_doubt(self, why: Reason, events: NDArray[np.int64]) -> Decisions:
        """Return the same with events undecided whose pixels are not to be relied on.

        Parameters
        ----------
        why : Reason
            `Reason.UNSTABLE_READ` or `Reason.CHANGED`.
        events : ndarray of int64
            Positions of the events; what was rejected stays so, there is a score for it.
        """
        decision = self.decision.copy()
        events = events[decision[events] != Decision.REJECT]
        decision[events] = Decision.UNDECIDED
        return replace(self._with(why, events), decision=decision)

    def with_sample(self, events: NDArray[np.int64]) -> Decisions:
        """Return the same with `Reason.AUDIT_SAMPLE` on these events; no decision changes.

        Parameters
        ----------
        events : ndarray of int64
            Positions of rejected events.
        """
        return self._with(Reason.AUDIT_SAMPLE, events)

    def with_payloads(self, events: NDArray[np.int64], hashes: Sequence[str]) -> Decisions:
        """Return the same with the hashes of what was kept of these events.

        Parameters
        ----------
        events : ndarray of int64
            Positions of the events.
        hashes : sequence of str
            128 bits in hexadecimal for each of them.
        """
        payload = np.zeros((self.decision.size, 2), np.uint64)
        words = np.frombuffer(bytes.fromhex("".join(hashes)), ">u8")
        payload[events] = words.reshape(-1, 2)
        return replace(self, payload=payload)

    @property
    def sample(self) -> NDArray[np.int64]:
        """Positions of the rejected events that are kept for an audit, ascending."""
        return np.flatnonzero(self.reason & np.uint32(Reason.AUDIT_SAMPLE)).astype(np.int64)

    def _repr_html_(self) -> str:
        facts = {d.name.lower(): f"{self.count(d):,}" for d in reversed(Decision)}
        return html_table(
            f"Decisions on {self.score.size:,} event{'' if self.score.size == 1 else 's'}",
            facts | {"kept to audit": f"{self.sample.size:,}"},
            note="Counts promise nothing: what is promised is in the assurance of the report.",
        )

    def _with(self, why: Reason, events: NDArray[np.int64]) -> Decisions:
        reason = self.reason.copy()
        reason[events] |= np.uint32(why)
        return replace(self, reason=reason)

    def count(self, decision: Decision) -> int:
        """Count the events with this decision."""
        return int(np.count_nonzero(self.decision == decision))


def decide(
    score: NDArray[np.float32],
    reason: NDArray[np.uint32],
    *,
    threshold: float,
    event_class: NDArray[np.uint8] | None = None,
    tiles: NDArray[np.uint16] | None = None,
) -> Decisions:
    """Decide on every event: keeping is the default, rejecting is earned.

    An event is rejected only if its score is finite and below the threshold and no reason speaks
    against trusting it. It is a hit if its score reaches the threshold. All else is undecided.

    Parameters
    ----------
    score : ndarray of float32
        Shape (event,).
    reason : ndarray of uint32
        `Reason` bits, shape (event,).
    threshold : float
        Smallest score of a hit.
    event_class, tiles : ndarray, optional
        See `Decisions`; no decision rests on them.

    Examples
    --------
    >>> made = decide(np.float32([0.9, 0.1, np.nan]), np.zeros(3, np.uint32), threshold=0.5)
    >>> [Decision(d).name for d in made.decision]
    ['HIT', 'REJECT', 'UNDECIDED']
    """
    finite = np.isfinite(score)
    safe = (reason & np.uint32(UNSAFE)) == 0
    unexplained = np.where(~finite & safe, np.uint32(Reason.SCORE_INVALID), np.uint32(0))
    reason = reason.astype(np.uint32) | unexplained
    decision = np.full(score.shape, Decision.UNDECIDED, np.uint8)
    decision[finite & safe & (score < threshold)] = Decision.REJECT
    # A high score on a damaged event still shows Bragg peaks: it is a hit, and its reason stays.
    decision[finite & (score >= threshold)] = Decision.HIT
    return Decisions(
        decision=decision, reason=reason, score=score, event_class=event_class, tiles=tiles
    )


def blank_peaks(counts: ArrayLike) -> float:
    """Most peaks that are nothing unusual on the blanks of a run.

    Parameters
    ----------
    counts : array_like
        Peaks of rejected events, most of them blanks, shape (event,).

    Returns
    -------
    float
        Five robust deviations above the lower quartile, no less than counting gives: up to three
        of four rejects may be hits. 0 if there are fewer than eight events, so that any number of
        peaks is unusual.

    Examples
    --------
    >>> blank_peaks([0] * 20 + [90]), blank_peaks([60, 70, 80] * 5) > 90
    (5.0, True)
    """
    known = np.asarray(counts, np.float64)
    if known.size < FEWEST_BLANKS:
        return 0.0
    low, quarter = np.quantile(known, (0.05, 0.25))
    # Of a normal distribution the two quantiles are 0.97 standard deviations apart.
    deviation = float(quarter - low) / 0.97
    return float(quarter) + 5.0 * max(deviation, math.sqrt(max(float(quarter), 1.0)))


def keep_by_peaks(decisions: Decisions, peaks: NDArray[np.integer], *, fewest: int) -> Decisions:
    """Keep rejects that have many peaks, and clearly more than the run's blanks, as undecided.

    Parameters
    ----------
    peaks : ndarray of int
        By the conventional rule, shape (event,); negative where they were not counted.
    fewest : int
        Peaks of such an event; 0 keeps none.

    Returns
    -------
    Decisions
        With `Reason.PEAK_COUNT` on every event that is kept for this.
    """
    rejected = decisions.decision == Decision.REJECT
    if not fewest or not rejected.any():
        return decisions
    most = blank_peaks(peaks[rejected & (peaks >= 0)])
    doubted = rejected & (peaks >= fewest) & (peaks > most)
    decision, reason = decisions.decision.copy(), decisions.reason.copy()
    decision[doubted] = Decision.UNDECIDED
    reason[doubted] |= np.uint32(Reason.PEAK_COUNT)
    return replace(decisions, decision=decision, reason=reason)
