"""A run against what its scorer was calibrated on.

The promise of a threshold is about hits like the calibrated ones. No statistic sees a few weak hits
among many blanks, so that no check can prove a loss to be small: each can only withhold a promise,
and one that had too little to judge by withholds it too. `sfxreduce.decisions.assurance` sums up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce.decisions.assurance import Check
from sfxreduce.quality.bad_pixels import FEWEST_FRAMES_FOR_HOT
from sfxreduce.quality.frame_statistics import QUANTITIES
from sfxreduce.scorers.calibration.record import Reference

__all__ = [
    "FEWEST_PEAKS",
    "MOST_FRAMES",
    "conditions_check",
    "opinion_check",
    "range_check",
    "sampled_events",
    "shape_check",
    "shape_distance",
    "shape_limit",
    "usual_shape",
    "window_check",
]

MOST_FRAMES = 32
"""Most frames that are measured, whatever the run's length. Chosen, not measured."""

LEAST_EFFECT = 0.02
"""Distance of two distributions of scores that is of no consequence, however surely it is there.
Chosen, not measured."""

MOST_OUTSIDE = 0.25
"""Share of the frames, or of the events with peaks, that may lie outside the calibrated range: a
jet flickers, a beam fails. Chosen, not measured."""

FEWEST_SCORES = 30
"""With fewer, chance alone moves the distance by 0.3 and more in one run of a hundred, by the same
inequality as `_CHANCE`: a check that could hardly fail has not passed."""

FEWEST_FRAMES = 16
"""With fewer frames, a quarter of them outside is too often chance: half of a run that is outside
would show 4 or fewer of 15 in one sample of 17, and of 16 in one of 26."""

FEWEST_SHOWING = 3
"""Events with peaks by which their widths and numbers are told. Chosen, not measured."""

FEWEST_PEAKS = 4
"""Peaks of an event whose peaks are compared with the calibrated ones."""

LEAST_MARGIN = 2.0
"""By so much, in odds, the highest score that a picture allows has to clear the threshold: few
crystals fill every tile. Chosen, not measured."""

# Share of the calibrated blanks whose scores are all taken for one. Chosen, not measured.
_LOW_BLANKS = 0.8
# A deviation that chance exceeds in one run of a hundred, by the Dvoretzky-Kiefer-Wolfowitz
# inequality with Massart's constant: doi:10.1214/aop/1176990746
_CHANCE = math.sqrt(math.log(2 / 0.01) / 2)

_LOOK = "look at rejected events with 'sfxreduce audit draw'"
_TEACH = "teach the model this run with 'sfxreduce train --from default'"
_PEAKS = "filter with '--scorer peaks'"


def sampled_events(n_events: int, *, most: int = MOST_FRAMES) -> list[int]:
    """Positions of at most `most` events, spread evenly over a run.

    Examples
    --------
    >>> sampled_events(3), sampled_events(1_000_000, most=3)
    ([0, 1, 2], [0, 500000, 999999])
    """
    chosen = np.linspace(0, max(n_events - 1, 0), min(n_events, most))
    return [int(event) for event in np.unique(np.round(chosen).astype(np.int64))]


def shape_distance(scores: ArrayLike, hits: ArrayLike, blanks: ArrayLike) -> float:
    """Distance of scores from the nearest mixture of hits and blanks, whatever the hit rate is.

    The least, over hit rates h, of the largest ``|F(s) - h F1(s) - (1 - h) F0(s)|``.

    Parameters
    ----------
    scores, hits, blanks : array_like
        Shape (event,) each; scores that are not finite do not count.

    Returns
    -------
    float
        Between 0 and 1.

    Examples
    --------
    >>> blanks, hits = np.linspace(0, 1, 500), np.linspace(3, 4, 500)
    >>> round(shape_distance(np.concatenate([blanks, hits[::9]]), hits, blanks), 2)
    0.0
    >>> round(shape_distance(blanks + 1.5, hits, blanks), 2)
    0.5
    """
    from scipy.optimize import minimize_scalar  # 0.15 s, for runs with enough scores to compare

    parts = [_finite(of) for of in (scores, hits, blanks)]
    at = np.unique(np.concatenate(parts))
    run, hit, blank = (np.searchsorted(of, at, side="right") / max(of.size, 1) for of in parts)
    # The largest of absolute affine functions of h is convex in h: one minimum.

    def gap(h: float) -> float:
        return float(np.max(np.abs(run - blank - h * (hit - blank)), initial=0.0))

    inner = minimize_scalar(gap, bounds=(0.0, 1.0), method="bounded", options={"xatol": 1e-5})
    return min(gap(0.0), gap(1.0), float(inner.fun))


def shape_limit(n_scores: int, n_hits: int, n_blanks: int, *, usual: float = 0.0) -> float:
    """Largest `shape_distance` that is no alarm: an effect, and what chance adds to it.

    Parameters
    ----------
    usual : float
        Distance between calibrated experiments.

    Examples
    --------
    >>> [round(shape_limit(n, 20_000, 20_000), 3) for n in (20, 500, 20_000)]
    [0.395, 0.104, 0.043]
    """
    known = min(n_hits, n_blanks)
    chance = _CHANCE * (1 / math.sqrt(n_scores) + 1 / math.sqrt(known))
    return max(usual, LEAST_EFFECT) + chance


def usual_shape(
    hits: Sequence[NDArray[np.floating]], blanks: Sequence[NDArray[np.floating]]
) -> float:
    """Largest distance of the scores of one calibrated experiment from those of all others.

    Parameters
    ----------
    hits, blanks : sequence of ndarray
        Scores of the labelled events, one array for each experiment.
    """
    distances = [0.0]
    for one in range(len(hits) if len(hits) > 1 else 0):
        others = [k for k in range(len(hits)) if k != one]
        distances.append(
            shape_distance(
                np.concatenate([hits[one], blanks[one]]),
                np.concatenate([hits[k] for k in others]),
                np.concatenate([blanks[k] for k in others]),
            )
        )
    return max(distances)


def shape_check(reference: Reference, scores: ArrayLike, *, n_hits: int, n_rejected: int) -> Check:
    """Compare the scores of a run with the nearest mixture of calibrated hits and blanks.

    Parameters
    ----------
    scores : array_like
        Of the run's events that could be judged, shape (event,).
    n_hits, n_rejected : int
        What was made of the run's events: without either there is no mixture.
    """
    known, hits, blanks = _finite(scores), reference.hit_scores, reference.blank_scores
    if not (hits.size and blanks.size):
        return Check(alarms=("the model stores no scores of calibrated blanks to compare with",))
    if known.size < FEWEST_SCORES:
        return Check(
            n=known.size,
            alarms=(
                f"only {known.size} events could be judged, {FEWEST_SCORES} are needed to compare "
                f"their scores with the calibrated ones: filter a longer run, or {_PEAKS}",
            ),
        )
    if not (n_hits and n_rejected):
        seen = "no event was rejected" if n_hits else "no event is a hit"
        return Check(
            n=known.size, alarms=(f"{seen}: there is nothing to tell hits from",), saves=False
        )
    # Blanks that score lower than calibrated ones, as a quiet detector's do, cost no hit.
    floor = np.quantile(blanks, _LOW_BLANKS)
    distance = shape_distance(*(np.maximum(of, floor) for of in (known, hits, blanks)))
    limit = shape_limit(known.size, hits.size, blanks.size, usual=reference.usual_shape)
    alarms = (
        ()
        if distance <= limit
        else (
            "the scores are distributed unlike those of calibrated hits and blanks at any hit rate "
            f"(distance {distance:.3f}, at most {limit:.3f}): {_LOOK}, or {_TEACH}",
        )
    )
    return Check(ran=True, n=known.size, value=distance, limit=limit, alarms=alarms)


def conditions_check(
    reference: Reference, statistics: NDArray[np.float64], *, adu_per_photon: float
) -> Check:
    """Compare light, noise and saturation of some frames with those of calibrated runs.

    Parameters
    ----------
    statistics : ndarray of float64
        Of the frames that could be read, shape (event, quantity).
    adu_per_photon : float
        Gain, known or measured; NaN if neither.
    """
    n = len(statistics)
    if not reference.envelope.size:
        return Check(n=n, alarms=("the model stores no range of calibrated frames",))
    alarms = []
    if n < FEWEST_FRAMES_FOR_HOT:
        alarms.append(
            f"{n} readable frames, {FEWEST_FRAMES_FOR_HOT} are needed to tell hot pixels from "
            f"Bragg peaks: filter a longer run, or {_PEAKS}"
        )
    if not (math.isfinite(adu_per_photon) and adu_per_photon > 0):
        alarms.append(
            "the gain could not be measured, and the source does not say it: see 'sfxreduce info', "
            f"or {_PEAKS}"
        )
    worst = 0.0
    for quantity, (low, high), values in zip(
        QUANTITIES, reference.envelope, statistics.T, strict=True
    ):
        known = values[np.isfinite(values)]
        if known.size < FEWEST_FRAMES <= n:
            alarms.append(
                f"{quantity.name} could be measured on {known.size} of {n} frames, on "
                f"{FEWEST_FRAMES} it has to be: {_LOOK}"
            )
            continue
        outside = np.count_nonzero((known < low) | (known > high))
        worst = max(worst, outside / max(known.size, 1))
        if outside > MOST_OUTSIDE * known.size:
            alarms.append(
                f"{quantity.name} {np.median(known):.3g} {quantity.unit}, calibrated from "
                f"{max(low, 0):.3g} to {high:.3g}: {_LOOK}, or {_TEACH}"
            )
    return Check(ran=n >= FEWEST_FRAMES, n=n, value=worst, limit=MOST_OUTSIDE, alarms=tuple(alarms))


def opinion_check(
    *, n_looked: int, n_rejected: int, n_called: int, implied_loss: float, max_loss: float
) -> Check:
    """Judge what the peak finder said of rejected events.

    Parameters
    ----------
    n_looked : int
        Rejects that were looked at.
    n_rejected : int
        All of them.
    n_called : int
        Those looked at with clearly more peaks than the run's blanks: they are kept.
    implied_loss : float
        Share of the hits that the calls stand for.
    max_loss : float
        Share that may be lost.
    """
    enough = n_looked >= min(MOST_FRAMES, n_rejected)
    alarms: tuple[str, ...] = ()
    if not enough:
        alarms = (
            f"only {n_looked} of {n_rejected} rejected events could be read for a second opinion, "
            f"{MOST_FRAMES} are needed: 'sfxreduce ledger' says which and why, or {_PEAKS}",
        )
    elif implied_loss > max_loss:
        alarms = (
            f"{n_called} of {n_looked} rejected events that were looked at have clearly more peaks "
            f"than the run's blanks, a loss of {100 * implied_loss:.3g} % where "
            f"{100 * max_loss:.3g} % may be lost: {_PEAKS}, or {_TEACH}",
        )
    return Check(ran=enough, n=n_looked, value=implied_loss, limit=max_loss, alarms=alarms)


def window_check(
    *, n_tiles: int, is_calibrated: bool, highest: float | None, threshold: float
) -> Check:
    """Judge whether hits can be told on the tiles that a picture has.

    Parameters
    ----------
    n_tiles : int
        That are scored; 0 for whole frames.
    is_calibrated : bool
        Whether so many, and these, were calibrated.
    highest : float or None
        Score of an event that shows as many peaks on each tile as count; None without a limit.
    threshold : float
        Smallest score of a hit on this run.
    """
    if not is_calibrated:
        return Check(
            n=n_tiles,
            alarms=(
                f"the window of {n_tiles} tiles is not the calibrated one: leave out '--window'",
            ),
        )
    if highest is None:
        return Check(ran=True, n=n_tiles)
    odds = highest / max(1.0 - highest, 1e-12) / LEAST_MARGIN
    limit = odds / (1.0 + odds)
    alarms = (
        ()
        if threshold <= limit
        else (
            f"{n_tiles} tile{'s' if n_tiles > 1 else ''} can score {highest:.3g} at most, not "
            f"clearly above the threshold {threshold:.3g}: {_PEAKS}",
        )
    )
    return Check(ran=True, n=n_tiles, value=threshold, limit=limit, alarms=alarms)


def range_check(
    reference: Reference, peaks: NDArray[np.integer], width_px: NDArray[np.floating]
) -> Check:
    """Compare the peaks of all events that show some with those of calibrated hits.

    Parameters
    ----------
    peaks : ndarray of int
        By the conventional rule, of kept and rejected events, shape (event,).
    width_px : ndarray
        Their median width, a standard deviation, shape (event,).
    """
    showing = (peaks >= FEWEST_PEAKS) & np.isfinite(width_px)
    n = int(np.count_nonzero(showing))
    if not reference.peaks.size:
        return Check(n=n, alarms=("the model stores no range of calibrated peaks",))
    if n < FEWEST_SHOWING:
        return Check(
            n=n,
            alarms=(
                f"{n} events show {FEWEST_PEAKS} or more peaks, {FEWEST_SHOWING} are needed to "
                "compare them with calibrated hits: filter a longer run",
            ),
            saves=False,
        )
    alarms, worst = [], 0.0
    for name, unit, values, (low, high) in (
        ("width of the peaks", "pixels", width_px[showing], reference.peaks[0]),
        ("number of peaks", "an event", peaks[showing], reference.peaks[1]),
    ):
        outside = float(np.mean((values < low) | (values > high)))
        worst = max(worst, outside)
        if outside > MOST_OUTSIDE:
            alarms.append(
                f"{name} {np.median(values):.3g} {unit}, calibrated from {low:.3g} to {high:.3g}: "
                f"{_LOOK}, or {_TEACH}"
            )
    return Check(ran=True, n=n, value=worst, limit=MOST_OUTSIDE, alarms=tuple(alarms))


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    """Finite scores in ascending order."""
    values = np.asarray(scores, np.float64)
    return np.sort(values[np.isfinite(values)])
