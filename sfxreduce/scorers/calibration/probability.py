"""Scores turned into probabilities, and whether those probabilities are right.

A score orders events and says no more. Isotonic regression [1]_ finds, among all maps that never
fall as the score rises, the one closest to the labels; it suits any score, a network's output as
well as a peak count. Being monotone it changes no decision, and no threshold's promise.

References
----------
.. [1] B. Zadrozny and C. Elkan, Proc. 8th ACM SIGKDD (2002) 694. doi:10.1145/775047.775151
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from sfxreduce.errors import LabelError

__all__ = ["ProbabilityMap", "ReliabilityBin", "calibrate_probability", "reliability_bins"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProbabilityMap:
    """Map from scores to probabilities of being a hit; straight between its knots, level outside.

    Parameters
    ----------
    score, probability : ndarray of float64
        Knots, both never falling, shape (knot,).
    hit_rate : float
        Share of hits among the events it was made from.
    """

    score: NDArray[np.float64]
    probability: NDArray[np.float64]
    hit_rate: float

    def __call__(self, score: ArrayLike, *, hit_rate: float | None = None) -> NDArray[np.float64]:
        """Probabilities that events of these scores are hits.

        Parameters
        ----------
        score : array_like
            Shape (event,).
        hit_rate : float, optional
            Of the run the events are from; that of the calibration if not given. By Bayes' rule
            the odds scale with it, as long as the scores of hits, and of misses, are like those
            calibrated on.

        Returns
        -------
        ndarray of float64
            Shape (event,), NaN where there is no score.
        """
        at = np.asarray(score, np.float64)
        value = np.where(np.isnan(at), np.nan, np.interp(at, self.score, self.probability))
        if hit_rate is None:
            return value
        odds = _odds(hit_rate) / _odds(self.hit_rate)
        return np.asarray(value * odds / (value * odds + 1.0 - value), np.float64)


def calibrate_probability(score: ArrayLike, is_hit: ArrayLike) -> ProbabilityMap:
    """Fit the map from scores to probabilities on labelled events.

    One hit is added at the lowest score and one miss at the highest: no number of events makes a
    probability of exactly 0 or 1.

    Parameters
    ----------
    score : array_like
        Shape (event,). Events without a finite score are left out.
    is_hit : array_like of bool
        Shape (event,).

    Raises
    ------
    LabelError
        If there are no hits or no misses among them, or the lengths differ.

    Examples
    --------
    >>> probability = calibrate_probability([1, 2, 3, 4], [False, False, True, True])
    >>> probability([0, 2.5, 9]).round(2).tolist()
    [0.33, 0.5, 0.67]
    """
    from scipy.optimize import isotonic_regression  # 0.15 s, for the few commands that calibrate

    value, hit = np.asarray(score, np.float64), np.asarray(is_hit, np.bool_)
    if value.shape != hit.shape or value.ndim != 1:
        raise LabelError(
            f"calibrate: expected one score and one label per event, found shapes {value.shape} "
            f"and {hit.shape}"
        )
    scored = np.isfinite(value)
    value, hit = value[scored], hit[scored]
    if not 0 < np.count_nonzero(hit) < hit.size:
        raise LabelError(
            f"calibrate: expected hits and misses, found {np.count_nonzero(hit)} hits among "
            f"{hit.size} events with a score; label more events"
        )
    knots, place = np.unique(value, return_inverse=True)
    n_hits = np.bincount(place, hit)
    n_events = np.bincount(place).astype(np.float64)
    n_hits[0] += 1
    n_events[0] += 1
    n_events[-1] += 1
    fit = isotonic_regression(n_hits / n_events, weights=n_events)
    # A level stretch needs its two ends only.
    ends = np.unique(np.concatenate([fit.blocks[:-1], fit.blocks[1:] - 1]))
    return ProbabilityMap(
        score=knots[ends], probability=np.asarray(fit.x)[ends], hit_rate=float(hit.mean())
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReliabilityBin:
    """Events of similar probability, and how many of them are hits.

    Parameters
    ----------
    low, high : float
        Limits of the probability.
    mean_probability : float
        Of these events; NaN if there are none.
    """

    low: float
    high: float
    n_events: int
    n_hits: int
    mean_probability: float

    @property
    def observed(self) -> float:
        """Share of hits; NaN if there are no events."""
        return self.n_hits / self.n_events if self.n_events else math.nan

    @property
    def interval95(self) -> tuple[float, float]:
        """Two-sided 95 % interval of that share, after Clopper and Pearson."""
        if not self.n_events:
            return 0.0, 1.0
        hits, others = self.n_hits, self.n_events - self.n_hits
        low = betaincinv(hits, others + 1, 0.025) if hits else 0.0
        high = betaincinv(hits + 1, others, 0.975) if others else 1.0
        return float(low), float(high)


def reliability_bins(
    probability: ArrayLike, is_hit: ArrayLike, *, n_bins: int = 10
) -> tuple[ReliabilityBin, ...]:
    """Probabilities against what became true, for a reliability plot.

    Judge on events that the calibration was not made from.

    Parameters
    ----------
    probability : array_like
        Shape (event,). Events without one (NaN) are left out.
    is_hit : array_like of bool
        Shape (event,).
    n_bins : int
        Bins of equal width between 0 and 1.

    Examples
    --------
    >>> for b in reliability_bins([0.1, 0.2, 0.9], [False, True, True], n_bins=2):
    ...     print(b.low, b.high, b.n_events, b.n_hits, round(b.mean_probability, 2))
    0.0 0.5 2 1 0.15
    0.5 1.0 1 1 0.9
    """
    value, hit = np.asarray(probability, np.float64), np.asarray(is_hit, np.bool_)
    known = np.isfinite(value)
    value, hit = value[known], hit[known]
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    place = np.clip(np.searchsorted(edges, value, side="right") - 1, 0, n_bins - 1)
    n_events = np.bincount(place, minlength=n_bins)
    n_hits = np.bincount(place[hit], minlength=n_bins)
    total = np.bincount(place, value, minlength=n_bins)
    return tuple(
        ReliabilityBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            n_events=int(n_events[i]),
            n_hits=int(n_hits[i]),
            mean_probability=float(total[i] / n_events[i]) if n_events[i] else math.nan,
        )
        for i in range(n_bins)
    )


def _odds(share: float) -> float:
    return share / (1.0 - share)
