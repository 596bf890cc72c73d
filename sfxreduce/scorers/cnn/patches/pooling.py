"""From single candidates to what is said of an event: its probability, class and peaks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from sfxreduce.run.reasons import EventClass
from sfxreduce.run.window import Window
from sfxreduce.scorers.cnn.patches.candidates import PATCH, Candidates
from sfxreduce.scorers.peaks.finder import FEWEST_ON_RING, on_powder_rings

__all__ = [
    "FEATURES",
    "PeakCounts",
    "Pooling",
    "class_of",
    "count_peaks",
    "event_features",
    "joined",
    "on_first_tiles",
]

# Evidence of an event without any candidate, in peaks: the logarithm of nothing is not a number.
# Chosen, not measured.
_LEAST_EVIDENCE = 0.01
# Of the window that the shipped model was calibrated on.
_ALL_TILES = 25
_MIN_SNR = 5.5  # of `PeakFinder`, by default
# Area of a Gaussian above half of its height, in squares of its standard deviation.
_HALF_AREA = 2.0 * math.pi * math.log(2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooling:
    """How expected numbers of peaks become a hit probability.

    Parameters
    ----------
    most_per_tile : float
        A tile of a picture of 25 or more counts for at most so many peaks, however many it shows.
        With 6, left-out experiments lost 2 to 5 of 300 hits instead of 1 to 2 (decision 6).
    doubt : float
        Taken off the logit of every candidate: chance makes millions of them, crystals a few. With
        2.5, 11 of 132 weak hits were lost instead of 6; with 3.5 nearly all of a photon counter
        (decision 6).
    offset, slope : float
        The probability's logit is ``offset + slope * log(evidence)``, evidence in peaks.
    """

    most_per_tile: float = 3.0
    doubt: float = 3.0
    offset: float = 0.0
    slope: float = 1.0

    def evidence(
        self,
        logits: NDArray[np.floating],
        found: Candidates,
        *,
        n_events: int,
        n_tiles: int,
        window: Window | None = None,
    ) -> NDArray[np.float64]:
        """Expected number of peaks of every tile, shape (event, tile), powder rings left out.

        A broad peak is seen on pixels and on squares of them: what sees more of a tile counts.

        Parameters
        ----------
        logits : ndarray
            Shape (candidate,), that it is a Bragg peak.
        window : Window, optional
            Where the tiles lie; nothing is taken for a powder ring if not given.
        """
        weights = expit(logits - self.doubt)
        if window is not None:
            weights = np.where(
                _on_powder_rings(weights, found, window, n_events=n_events),
                0.0,
                weights,
            )
        return _of_the_better_scale(weights, found, n_events=n_events, n_tiles=n_tiles)

    def cap(self, n_tiles: int) -> float:
        """Most peaks that a tile counts for in a picture of so many.

        More in a small picture, where a crystal has fewer tiles to fill: one alone could never be
        a hit otherwise. It grows with the root of the tiles that are missing; chosen, not measured.

        Examples
        --------
        >>> [Pooling(most_per_tile=3.0).cap(n) for n in (1, 9, 25, 80)]
        [15.0, 5.0, 3.0, 3.0]
        """
        return self.most_per_tile * math.sqrt(max(_ALL_TILES / n_tiles, 1.0))

    def pooled(self, of_tiles: NDArray[np.float64], *, n_tiles: int) -> NDArray[np.float64]:
        """Evidence of events, in peaks.

        Parameters
        ----------
        of_tiles : ndarray
            Shape (event, tile), as `evidence` gives it; of some of a picture's tiles, or of all.
        n_tiles : int
            Of the picture.

        Examples
        --------
        >>> Pooling(most_per_tile=3.0).pooled(np.array([[20.0, 0.0, 1.0]]), n_tiles=25).tolist()
        [4.0]
        """
        pooled: NDArray[np.float64] = np.minimum(of_tiles, self.cap(n_tiles)).sum(axis=1)
        return pooled

    def highest(self, n_scored: int, *, n_tiles: int) -> float:
        """Hit probability of an event with as many peaks on each scored tile as count."""
        return float(self.probability(np.array([n_scored * self.cap(n_tiles)]))[0])

    def probability(self, evidence: NDArray[np.floating]) -> NDArray[np.float32]:
        """Hit probability of events of some evidence, in peaks."""
        logit = self.offset + self.slope * np.log(np.maximum(evidence, _LEAST_EVIDENCE))
        probability: NDArray[np.float32] = expit(logit).astype(np.float32)
        return probability


class PeakCounts(NamedTuple):
    """Peaks of events by the conventional rule.

    Parameters
    ----------
    number : ndarray of int16
        Shape (event,).
    width_px : ndarray of float32
        Median standard deviation of a peak, shape (event,); NaN where there is none.
    """

    number: NDArray[np.int16]
    width_px: NDArray[np.float32]


def count_peaks(
    found: Candidates, *, n_events: int, n_tiles: int, window: Window | None = None
) -> PeakCounts:
    """Count candidates that the conventional peak finder would call peaks, off powder rings.

    Its rule on what is known of a candidate: the pixel stands out of the noise around it by
    `_MIN_SNR` times its standard deviation upwards. That is taken as that of photons, whose longer
    tail adds 0.89 photons [1]_, so that noise of the detector counts for more than it is.

    Parameters
    ----------
    n_tiles : int
        Of an event; candidates are numbered by them.
    window : Window, optional
        Where the tiles lie; nothing is taken for a powder ring if not given.

    References
    ----------
    .. [1] The Cornish-Fisher term of `sfxreduce.scorers.peaks.finder`, (s^2 - 1) / 6 s.
    """
    top = found.patch[:, PATCH // 2, PATCH // 2]
    upwards = 1.0 + (_MIN_SNR - 1.0 / _MIN_SNR) / 6.0 / found.noise_photons
    is_peak = top >= _MIN_SNR * upwards
    if window is not None:
        is_peak &= ~_on_powder_rings(is_peak, found, window, n_events=n_events)
    of_tiles = _of_the_better_scale(is_peak, found, n_events=n_events, n_tiles=n_tiles)
    counted = np.flatnonzero(is_peak)
    event = found.tile[counted] // n_tiles
    half = found.patch[counted] >= top[counted, np.newaxis, np.newaxis] / 2
    width = found.scale[counted] * np.sqrt(half.sum(axis=(1, 2)) / _HALF_AREA)
    sharp = found.sharp[counted]
    on_pixels, on_squares = (np.bincount(event[of], minlength=n_events) for of in (sharp, ~sharp))
    own = sharp == (on_pixels >= on_squares)[event]
    median = _medians(width[own], event[own], n_events=n_events)
    number = np.minimum(of_tiles.sum(axis=1), np.iinfo(np.int16).max).astype(np.int16)
    return PeakCounts(number=number, width_px=median)


def _medians(
    values: NDArray[np.float64], event: NDArray[np.integer], *, n_events: int
) -> NDArray[np.float32]:
    """Median of the values of each event, shape (event,); NaN where there are none."""
    median = np.full(n_events, np.nan, np.float32)
    ascending = values[np.lexsort((values, event))]
    n = np.bincount(event, minlength=n_events)
    starts, some = np.cumsum(n) - n, n > 0
    middle = [ascending[(starts + place)[some]] for place in ((n - 1) // 2, n // 2)]
    median[some] = (middle[0] + middle[1]) / 2
    return median


def on_first_tiles(
    found: Candidates, n_tiles: int, *, of: int
) -> tuple[Candidates, NDArray[np.int64]]:
    """Candidates on the first tiles of every event, numbered as if there were no others.

    Parameters
    ----------
    n_tiles, of : int
        How many are the first, and how many there are.

    Returns
    -------
    tuple of Candidates and ndarray of int64
        And the place that each of them had.
    """
    event, tile = np.divmod(found.tile, of)
    own = np.flatnonzero(tile < n_tiles)
    renumbered = (event[own] * n_tiles + tile[own]).astype(np.int32)
    return replace(found.take(own), tile=renumbered), own


def _on_powder_rings(
    weights: NDArray[np.generic],
    found: Candidates,
    window: Window,
    *,
    n_events: int,
) -> NDArray[np.bool_]:
    """Which candidates lie on powder rings, shape (candidate,).

    Parameters
    ----------
    weights : ndarray
        Shape (candidate,): for how many peaks each of them counts.
    """
    n_tiles = len(window.origins)
    event = found.tile // n_tiles
    total = np.bincount(event, weights=weights, minlength=n_events)
    chosen = np.flatnonzero((total >= FEWEST_ON_RING)[event])
    on_ring = np.zeros(len(found), np.bool_)
    if not chosen.size:
        return on_ring
    origins, tile = np.array(window.origins), found.tile % n_tiles
    at = np.stack([found.y, found.x], axis=1) + origins[tile] - _middle(window)
    on_ring[chosen] = on_powder_rings(
        np.hypot(*at.T)[chosen],
        event[chosen],
        weights=weights[chosen],
        kind=found.sharp[chosen].astype(np.intp),
    )
    return on_ring


def _middle(window: Window) -> NDArray[np.float64]:
    """(row, column) of the middle of the picture: the first tile lies there."""
    return np.add(window.origins[0], np.array(window.tile_shape) / 2)


def _of_the_better_scale(
    weights: NDArray[np.generic], found: Candidates, *, n_events: int, n_tiles: int
) -> NDArray[np.float64]:
    """Sum of weights of candidates on every tile, of the scale with more; shape (event, tile)."""
    n = n_events * n_tiles
    of_scales = [
        np.bincount(found.tile[of_scale], weights=weights[of_scale], minlength=n)
        for of_scale in (found.sharp, ~found.sharp)
    ]
    return np.maximum(*of_scales).reshape(n_events, n_tiles)


FEATURES = (
    "share of the peaks on one ring",
    "crowding of the peaks",
    "share of candidates that are surely peaks",
    "prominence of the peaks",
)
"""What the head looks at, in the order of its weights.

None of them grows with the number of peaks or of candidates, which differ from detector to detector
more than from class to class.
"""

# Decision 7 has the confusions that came of these; no other values are on record.
_LIKELY = 0.5
_CONCEIVABLE = 0.1
_FEWEST_FOR_SHAPE = 4
_FULLEST_RING_PX = 25


def event_features(
    logits: NDArray[np.floating], found: Candidates, window: Window, *, n_events: int
) -> NDArray[np.float64]:
    """Describe events by their candidates, shape (event, feature); see `FEATURES`.

    Parameters
    ----------
    logits : ndarray
        Of each candidate to be a Bragg peak, shape (candidate,).
    found : Candidates
        Those found on single pixels count.
    window : Window
        That they were found in.
    """
    own = found.sharp
    # Not their patches: a device has let go of those.
    logits, tiles, prominences = logits[own], found.tile[own], found.prominence[own]
    rows, columns = found.y[own], found.x[own]
    n_tiles = len(window.origins)
    likely = expit(logits)
    sure = np.flatnonzero(likely > _LIKELY)
    event, tile = np.divmod(tiles[sure].astype(np.int64), n_tiles)
    places = np.stack([rows[sure], columns[sure]], axis=1)
    at = np.array(window.origins)[tile] + places - _middle(window)
    conceivable = np.bincount(tiles[likely > _CONCEIVABLE] // n_tiles, minlength=n_events)
    features = np.zeros((n_events, len(FEATURES)))
    starts = np.searchsorted(event, np.arange(n_events + 1))
    for number, (first, last) in enumerate(pairwise(starts)):
        n = last - first
        if n:
            prominence = prominences[sure[first:last]].astype(np.float64)
            features[number, 2:] = n / conceivable[number], np.median(np.log(prominence))
        if n >= _FEWEST_FOR_SHAPE:
            features[number, :2] = _on_one_ring(at[first:last]), _crowding(at[first:last])
    return features


def joined(parts: Sequence[tuple[NDArray[np.integer], Candidates]]) -> Candidates:
    """Candidates that were found apart as those of one run.

    Parameters
    ----------
    parts : sequence of tuple
        Tile of each candidate, counted over all events, and the candidates.
    """
    columns = {
        field.name: np.concatenate([getattr(found, field.name) for _, found in parts])
        for field in fields(Candidates)
    }
    columns["tile"] = np.concatenate([tile for tile, _ in parts]).astype(np.int32)
    return Candidates(**columns)


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
    >>> weight, bias = np.zeros((4, 3)), np.array([0.0, 1.0, 0.0])
    >>> EventClass(class_of(np.zeros((1, 4)), weight, bias)[0]).name
    'MULTIPLE'
    """
    best = np.argmax(features @ weight + bias, axis=1)
    told: NDArray[np.uint8] = (best + EventClass.SINGLE).astype(np.uint8)
    return told


def _on_one_ring(at: NDArray[np.float64]) -> float:
    """Share of peaks in the fullest ring around the middle of the picture."""
    ring = (np.hypot(*at.T) / _FULLEST_RING_PX).astype(np.int64)
    return float(np.bincount(ring).max() / len(at))


def _crowding(at: NDArray[np.float64]) -> float:
    """How far apart neighbours are, as a logarithm: 0 if like points thrown at random."""
    down, across = (np.subtract.outer(axis, axis) for axis in at.T)
    squared = down * down + across * across
    np.fill_diagonal(squared, np.inf)
    nearest = max(float(np.median(np.sqrt(squared.min(axis=1)))), 1.0)
    radius = max(float(np.quantile(np.hypot(*at.T), 0.9)), 1.0)
    return math.log(nearest / (0.5 * radius * math.sqrt(math.pi / len(at))))
