"""Whether a run is like the runs a model was calibrated on. The answer can only veto.

Three tests, each blind to something. None of them sees a few weak hits among many blanks: only an
audit of the rejects does.

- Shape of the scores: the hit rate differs from run to run and costs nothing, so that it is taken
  out first. What remains is how far the run's scores are from *any* mixture of the calibrated hits
  and blanks (`shape_distance`). Tests on raw scores alarm where only the hit rate changed [1]_.
- Physics of the frames: light, noise, saturation, usable pixels, bright pixels, against the range
  they had in calibration (`sfxreduce.quality.frame_statistics.envelope_of`).
- A second opinion: frames on which the peak finder sees a hit and the model does not.

References
----------
.. [1] S. Rabanser, S. Günnemann, Z. C. Lipton, Failing loudly (2019). doi:10.48550/arXiv.1810.11953
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from sfxreduce.quality.bad_pixels import FEWEST_FRAMES_FOR_HOT
from sfxreduce.quality.frame_statistics import QUANTITIES
from sfxreduce.scorers.calibration.record import Reference

__all__ = [
    "MOST_FRAMES",
    "Drift",
    "Sample",
    "judge_drift",
    "sampled_events",
    "shape_distance",
    "shape_limit",
    "usual_shape",
]

MOST_FRAMES = 32
"""Most frames that are looked at, whatever the run's length. Chosen, not measured."""

# The next four were chosen, not measured.
LEAST_EFFECT = 0.02
"""Distance of two distributions of scores that is of no consequence, however surely it is there."""

MOST_DISAGREEING, MOST_DISAGREEING_SHARE = 2, 0.1
"""Frames of a sample, and their share, on which the peak finder may see a hit that the model
rejects, whichever is more: it errs too, on ice and salt."""

MOST_OUTSIDE = 0.25
"""Share of the frames that may lie outside the envelope: a jet flickers, a beam fails."""

FEWEST_SCORES = 8
"""With fewer, scores have no shape."""

# A deviation that chance exceeds in one run of a hundred, by the Dvoretzky-Kiefer-Wolfowitz
# inequality with Massart's constant: doi:10.1214/aop/1176990746
_CHANCE = math.sqrt(math.log(2 / 0.01) / 2)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """What was seen on some frames of a run.

    Parameters
    ----------
    statistics : ndarray of float64
        Shape (event, quantity).
    n_disagreeing : int
        Frames that the model rejects and the peak finder calls hits.
    adu_per_photon : float
        Gain, known or measured; NaN if neither.
    """

    statistics: NDArray[np.float64]
    n_disagreeing: int
    adu_per_photon: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What was found.

    Parameters
    ----------
    checked : bool
        False if it was switched off, or there is no model that could drift.
    alarms : tuple of str
        In words, why the run is unlike the calibrated ones.
    frames : int
        Frames looked at.
    shape : float or None
        Distance of the scores from calibrated ones; None if not compared.
    disagreement : int or None
        Sampled frames that the peak finder calls hits and the model rejects; None if not compared.
    """

    checked: bool = False
    alarms: tuple[str, ...] = ()
    frames: int = 0
    shape: float | None = None
    disagreement: int | None = None

    @property
    def passed(self) -> bool:
        """Whether it was checked and no alarm was raised."""
        return self.checked and not self.alarms

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self) | {"alarms": list(self.alarms)}


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


def judge_drift(reference: Reference, scores: ArrayLike, sample: Sample) -> Drift:
    """Compare a run with what a model was calibrated on.

    Parameters
    ----------
    scores : array_like
        Of the run's events that could be judged, shape (event,).
    """
    n_frames = len(sample.statistics)
    shape, alarms = _shape(reference, _finite(scores))
    if reference.envelope.size:
        alarms += _not_measured(n_frames, sample.adu_per_photon)
        alarms += _outside(reference.envelope, sample.statistics)
    if sample.n_disagreeing > max(MOST_DISAGREEING, MOST_DISAGREEING_SHARE * n_frames):
        alarms.append(
            f"the peak finder sees a hit on {sample.n_disagreeing} of {n_frames} sampled frames "
            "that the network rejects"
        )
    return Drift(
        checked=True,
        alarms=tuple(alarms),
        frames=n_frames,
        shape=shape,
        disagreement=sample.n_disagreeing,
    )


def _shape(reference: Reference, scores: NDArray[np.float64]) -> tuple[float | None, list[str]]:
    """Distance of the scores from calibrated ones, and what is to be said of it."""
    hits, blanks = reference.hit_scores, reference.blank_scores
    if not (hits.size and blanks.size and scores.size >= FEWEST_SCORES):
        return None, []
    shape = shape_distance(scores, hits, blanks)
    limit = shape_limit(scores.size, hits.size, blanks.size, usual=reference.usual_shape)
    if shape <= limit:
        return shape, []
    return shape, [
        "this run's score distribution does not match the calibration data "
        f"(distance {shape:.3f}, limit {limit:.3f})"
    ]


def _not_measured(n_frames: int, adu_per_photon: float) -> list[str]:
    """Say what was known of every calibrated run and is not known of this one."""
    found = []
    if n_frames < FEWEST_FRAMES_FOR_HOT:
        found.append(
            f"{n_frames} readable frames are too few to tell hot pixels from Bragg peaks: "
            f"calibrated runs had {FEWEST_FRAMES_FOR_HOT} or more"
        )
    if not (math.isfinite(adu_per_photon) and adu_per_photon > 0):
        found.append("the gain is neither known nor could it be measured, as it was in calibration")
    return found


def _outside(envelope: NDArray[np.float64], statistics: NDArray[np.float64]) -> list[str]:
    """Say which quantities lie outside the envelope on too many frames."""
    found = []
    for quantity, (low, high), values in zip(QUANTITIES, envelope, statistics.T, strict=True):
        known = values[np.isfinite(values)]
        outside = np.count_nonzero((known < low) | (known > high))
        if outside > MOST_OUTSIDE * known.size:
            found.append(
                f"{quantity.name} {np.median(known):.3g} {quantity.unit}: calibrated from "
                f"{max(low, 0):.3g} to {high:.3g}"
            )
    return found


def _finite(scores: ArrayLike) -> NDArray[np.float64]:
    """Finite scores in ascending order."""
    values = np.asarray(scores, np.float64)
    return np.sort(values[np.isfinite(values)])
