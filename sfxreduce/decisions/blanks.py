"""What a run's own blanks look like: how high they score, and how many peaks they show.

Most events of a run are blanks, and its hits lie apart from them. Both tell more of the run than a
threshold that was chosen on others: between blanks and hits lies a gap that any threshold may lie
in, and what has clearly more peaks than the blanks is no blank, whatever its score.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.run.reasons import Reason

__all__ = ["Gap", "blank_peaks", "find_gap", "keep_by_peaks"]

FEWEST_BLANKS = 8
"""Events by which the peaks of a run's blanks are told. Chosen, not measured."""

FEWEST_LOW = 20
"""Scores below a gap, by which its edge is told."""

LEAST_GAP = 0.7
"""Width of a gap in logits: twice the odds. Chosen, not measured."""

_MARGIN = 0.25  # of the gap, above its lower edge; chosen, not measured
_DRAWS, _SEED = 200, 20
_INTERVAL = (0.025, 0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Scores that no event of a run has, between its blanks and its hits.

    Parameters
    ----------
    low, high : float
        Highest score of the blanks; lowest one of the hits, or the promised threshold if that is
        lower.
    threshold : float
        Between them.
    promised : float
        The threshold that the labelled hits allow; it is higher.
    moved : int
        Events that score between the two: they are kept for this.
    """

    low: float
    high: float
    threshold: float
    promised: float
    moved: int

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


def find_gap(
    scores: ArrayLike, *, promised: float, blank_scores: ArrayLike, max_blanks: float
) -> Gap | str:
    """Look for a gap below the promised threshold.

    Parameters
    ----------
    scores : array_like
        Of the run's events in source order, between 0 and 1, shape (event,).
    promised : float
        Threshold that the labelled hits allow.
    blank_scores : array_like
        Of calibrated blanks, at the level of the run, shape (blank,).
    max_blanks : float
        Largest share of these that may score above the new threshold.

    Returns
    -------
    Gap or str
        Why there is none, or none that matters.

    Examples
    --------
    >>> blanks, hits = np.linspace(1e-4, 5e-3, 90), np.full(6, 0.07)
    >>> gap = find_gap(
    ...     np.r_[blanks, hits, 0.9], promised=0.1, blank_scores=blanks, max_blanks=0.02
    ... )
    >>> gap.moved, gap.low < gap.threshold < gap.high
    (6, True)
    """
    seen, known = (np.asarray(of, np.float64) for of in (scores, blank_scores))
    seen = seen[np.isfinite(seen)]
    if not known.size or not 0.0 < promised < 1.0:
        return "no calibrated blanks to compare with"
    # Below, more calibrated blanks would be kept than may be.
    floor = float(np.quantile(known, 1.0 - max_blanks, method="higher"))
    if floor >= promised:
        return "a lower threshold would keep too many blanks"
    values = logit(np.clip(seen, floor, 1.0 - 1e-7))
    top = float(logit(promised))
    if np.count_nonzero(values < top) < FEWEST_LOW:
        return f"fewer than {FEWEST_LOW} events score below the promised threshold"
    if values.max() < top:
        return "no event scores above the promised threshold"
    low, high = _widest(values, top)
    if high - low < LEAST_GAP:
        return "no gap between blanks and hits"
    rng = np.random.default_rng(_SEED)
    edges = [_widest(rng.choice(values, values.size), top)[0] for _ in range(_DRAWS)]
    least, most = np.quantile(edges, _INTERVAL)
    if most - least > high - low:
        return "the gap between blanks and hits depends on single events"
    threshold = float(expit(low + _MARGIN * (high - low)))
    return Gap(
        low=float(expit(low)),
        high=float(expit(high)),
        threshold=threshold,
        promised=promised,
        moved=int(np.count_nonzero((seen >= threshold) & (seen < promised))),
    )


def _widest(values: NDArray[np.float64], top: float) -> tuple[float, float]:
    """Widest interval below `top` without a value, and above enough values."""
    ascending = np.append(np.sort(values[values < top]), top)
    starts, ends = ascending[FEWEST_LOW - 1 : -1], ascending[FEWEST_LOW:]
    if not starts.size:
        return top, top
    widest = int(np.argmax(ends - starts))
    return float(starts[widest]), float(ends[widest])


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
