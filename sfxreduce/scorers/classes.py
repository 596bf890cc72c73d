"""What kind of event it is: one crystal, several, or no crystal but something that shines like one.

A linear head on a few numbers that the candidates of an event give anyway. It is told beside the
score and never used to drop an event.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from sfxreduce.decide import EventClass
from sfxreduce.scorers.candidates import Candidates

__all__ = ["FEATURES", "class_of", "event_features"]

FEATURES = (
    "peaks",
    "peaks in the fullest tile",
    "share of tiles with a peak",
    "candidates that are no peaks",
    "prominent candidates that are no peaks",
    "prominence of the peaks",
    "crowding of the peaks",
)
"""What the head looks at, in the order of its weights."""

_LIKELY = 0.5
_PROMINENT = 8.0
_FEWEST_FOR_CROWDING = 4


def event_features(
    logits: NDArray[np.floating], found: Candidates, *, n_events: int, n_tiles: int
) -> NDArray[np.float64]:
    """Describe events by their candidates, shape (event, feature); see `FEATURES`.

    Parameters
    ----------
    logits : ndarray
        Of each candidate to be a Bragg peak, shape (candidate,).
    found : Candidates
    n_events, n_tiles : int
    """
    event = found.tile.astype(np.int64) // n_tiles
    likely = expit(logits)

    def per_event(weight: NDArray[np.generic]) -> NDArray[np.float64]:
        sums = np.bincount(event, weights=weight.astype(np.float64), minlength=n_events)
        return sums.astype(np.float64)

    of_tile = np.bincount(found.tile, weights=likely, minlength=n_events * n_tiles)
    of_tile = of_tile.reshape(n_events, n_tiles)
    peaks = per_event(likely)
    is_peak = likely > _LIKELY
    prominence = per_event(likely * np.log(found.prominence.astype(np.float64)))
    return np.stack(
        [
            np.log1p(peaks),
            np.log1p(of_tile.max(axis=1)),
            (of_tile > _LIKELY).mean(axis=1),
            np.log1p(per_event(~is_peak)),
            np.log1p(per_event(~is_peak & (found.prominence > _PROMINENT))),
            prominence / np.maximum(peaks, 1e-3),
            _crowding(found, is_peak, n_events * n_tiles).reshape(n_events, n_tiles).mean(axis=1),
        ],
        axis=1,
    )


def class_of(
    features: NDArray[np.float64], weight: NDArray[np.floating], bias: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Most likely `EventClass` of events.

    Parameters
    ----------
    features : ndarray
        Shape (event, feature).
    weight, bias : ndarray
        Shapes (feature, class) and (class,), the classes from `EventClass.SINGLE` on.

    Examples
    --------
    >>> weight, bias = np.zeros((7, 3)), np.array([0.0, 1.0, 0.0])
    >>> EventClass(class_of(np.zeros((1, 7)), weight, bias)[0]).name
    'MULTIPLE'
    """
    best = np.argmax(features @ weight + bias, axis=1)
    told: NDArray[np.uint8] = (best + EventClass.SINGLE).astype(np.uint8)
    return told


def _crowding(found: Candidates, is_peak: NDArray[np.bool_], n_tiles: int) -> NDArray[np.float64]:
    """How much closer than at random the peaks of each tile lie to one another, on a log scale."""
    crowding = np.zeros(n_tiles)
    rows = np.flatnonzero(is_peak)
    starts = np.flatnonzero(np.diff(found.tile[rows], prepend=-1))
    for own in np.split(rows, starts[1:]) if rows.size else ():
        if own.size < _FEWEST_FOR_CROWDING:
            continue
        at = np.stack([found.y[own], found.x[own]], axis=1).astype(np.float64)
        apart = np.hypot(*(at[:, np.newaxis] - at[np.newaxis]).transpose(2, 0, 1))
        np.fill_diagonal(apart, np.inf)
        expected = 175.0 / np.sqrt(own.size)
        crowding[found.tile[own[0]]] = -np.log(
            max(float(np.median(apart.min(axis=1))), 1.0) / expected
        )
    return crowding
