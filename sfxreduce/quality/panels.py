"""Parts of a frame that can fail on their own: panels, squares of pixels, the end of the readout.

A panel that is missing or flooded is a small share of a frame, and yet may be where the peaks are.
So each part is looked at for itself: does it hold any signal at all, and is it about as bright as
the others? A few hundred pixels of each settle that for nearly every event.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sfxreduce._numba import compiled
from sfxreduce.errors import SchemaError
from sfxreduce.quality.events import flat_events
from sfxreduce.run.detector import Detector
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Sampled
from sfxreduce.run.window import Window

__all__ = ["Parts", "inspect_parts", "parts_of", "parts_of_samples"]

# Chosen, not measured; docs/explanation/network.md says what follows from them.
_FEWEST_IN_PANEL = 64
_FEWEST_IN_TILE = 4096
_FEWEST_SAMPLED = 512
_LAST_ROWS = 16
_TILE = 175  # half a side of the poster's tile
_LOOKED_AT = 256  # tells a mean to 6 % of sigma
_FEWEST_TO_COMPARE = 4  # the fewest that have quartiles
_FAR_ABOVE = 10.0
_LEAST_SPREAD = 0.25  # with `_FAR_ABOVE`: no part is hot below 3.5 times the middle of all
_NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Where the good pixels of each part lie in the flat pixels of an event.

    Parameters
    ----------
    members : ndarray of int64
        One part after the other; a pixel may be in several.
    starts : ndarray of int64
        Where each part begins among the members, and where the last one ends.
    sample : ndarray of int64
        Shape (part, pixel): some of each, spread evenly, the first member first.
    families : ndarray of int64
        Shape (family, 2): first part, and the one after the last, of parts that are alike and can
        be compared with one another.
    n_pixels : int
        Of an event.
    """

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    sample: NDArray[np.int64]
    families: NDArray[np.int64]
    n_pixels: int


@lru_cache(maxsize=4)
def parts_of(detector: Detector, window: Window | None) -> Parts:
    """Panels, squares of 175 pixels and last rows among the pixels that a scorer sees.

    Parameters
    ----------
    window : Window or None
        None for whole frames.
    """
    if window is None:
        index, good = np.arange(detector.mask.size), detector.good().ravel()
    else:
        index, good = window.gather(detector).ravel(), window.good(detector).ravel()
    return _parts(detector, index, good, fewest_in_tile=_FEWEST_IN_TILE)


@lru_cache(maxsize=4)
def parts_of_samples(detector: Detector, sampled: Sampled) -> tuple[Parts, NDArray[np.bool_]]:
    """The same parts among pixels that were read in place of whole tiles, and which are good."""
    exists = sampled.index >= 0
    good = exists & detector.good().ravel()[np.where(exists, sampled.index, 0)]
    return _parts(detector, sampled.index, good, fewest_in_tile=_FEWEST_SAMPLED), good


def _parts(
    detector: Detector,
    index: NDArray[np.int64],
    good: NDArray[np.bool_],
    *,
    fewest_in_tile: int,
) -> Parts:
    """Parts among pixels with these flat places in a frame."""
    n_y, n_x = detector.panel_shape
    place = np.flatnonzero(good)
    panel, y, x = np.unravel_index(index[place], (len(detector.panels), n_y, n_x))
    tile = (y // _TILE) * -(-n_x // _TILE) + x // _TILE
    panels = _groups(place, panel, _FEWEST_IN_PANEL) if len(detector.panels) > 1 else []
    tiles = _groups(place, tile * len(detector.panels) + panel, fewest_in_tile)
    last = place[(panel == len(detector.panels) - 1) & (y >= n_y - _LAST_ROWS)]
    ends = [last] if last.size >= _FEWEST_IN_PANEL else []
    parts = (*panels, *tiles, *ends)
    spread = [part[np.linspace(0, part.size - 1, _LOOKED_AT).astype(np.int64)] for part in parts]
    n_panels, n_alike = len(panels), len(panels) + len(tiles)
    return Parts(
        members=np.concatenate([place[:0], *parts]),
        starts=np.cumsum([0, *(part.size for part in parts)]),
        sample=np.array(spread, np.int64).reshape(-1, _LOOKED_AT),
        families=np.array([[0, n_panels], [n_panels, n_alike]]),
        n_pixels=good.size,
    )


def inspect_parts(
    pixels: NDArray[np.generic],
    parts: Parts,
    *,
    saturation_adu: float = math.nan,
    adu_per_photon: float = math.nan,
) -> NDArray[np.uint32]:
    """Reasons not to trust a score because of a part of the event.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...), in ADU.
    parts : Parts
        Of the pixels of one event.
    saturation_adu : float
        Full scale; NaN if unknown.
    adu_per_photon : float
        Gain; NaN if unknown. Parts that differ by single photons are alike.

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).

    Raises
    ------
    SchemaError
        If these are parts of other events.

    Examples
    --------
    >>> detector = Detector.centred("camera", (700, 700))
    >>> frame = np.random.default_rng(0).poisson(5, (1, 700, 700))
    >>> parts = parts_of(detector, None)
    >>> half = frame.copy()
    >>> half[:, 350:] = 0
    >>> [Reason(int(inspect_parts(seen, parts)[0])).name for seen in (frame, half)]
    [None, 'PANELS_MISSING']
    """
    flat = flat_events(pixels)
    if flat.shape[1] != parts.n_pixels:
        raise SchemaError(
            f"parts of an event: expected events of {parts.n_pixels} pixels, found "
            f"{pixels.shape[1:]}; were they read through another window?"
        )
    missing, middle = _look(flat, parts.members, parts.starts, parts.sample)
    # Below a photon a pixel a part's middle value is no photon, or one.
    photon = adu_per_photon if math.isfinite(adu_per_photon) else 1.0
    nearly_full = float(_NEARLY_FULL * saturation_adu)
    hot = _any_hot(middle, parts.families, nearly_full, max(photon, 1.0))
    reasons = np.where(missing, np.uint32(Reason.PANELS_MISSING), np.uint32(0))
    reasons |= np.where(hot, np.uint32(Reason.PANEL_HOT), np.uint32(0))
    return reasons


def _groups(
    place: NDArray[np.int64], group: NDArray[np.int64], fewest: int
) -> list[NDArray[np.int64]]:
    """Places of each group that has enough of them."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return [part for part in np.split(place[order], starts[1:]) if part.size >= fewest]


@compiled
def _look(
    flat: NDArray[np.generic],
    members: NDArray[np.int64],
    starts: NDArray[np.int64],
    sample: NDArray[np.int64],
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether a part of each event is missing, and the median of each part: (event, part).

    A part is missing if it holds one and the same value everywhere, or hardly a number.
    """
    n_parts, n_seen = sample.shape
    missing = np.zeros(len(flat), np.bool_)
    middle = np.empty((len(flat), n_parts), np.float64)
    seen = np.empty(n_seen, np.float64)
    for event in range(len(flat)):
        missing[event] = _look_at(flat[event], members, starts, sample, seen, middle[event])
    return missing, middle


@compiled(borrows=True)
def _look_at(
    values: NDArray[np.generic],
    members: NDArray[np.int64],
    starts: NDArray[np.int64],
    sample: NDArray[np.int64],
    seen: NDArray[np.float64],
    middle: NDArray[np.float64],
) -> bool:
    """Whether a part of an event is missing; fills in the median of each part. See `_look`."""
    missing = False
    for part in range(len(sample)):
        n_finite = n_alike = 0
        for i in range(seen.size):
            value = values[sample[part, i]]
            finite = math.isfinite(value)
            # No number counts as dark: a part without numbers is missing, not hot.
            seen[i] = value if finite else 0.0
            n_finite += finite
        for i in range(seen.size):
            n_alike += seen[i] == seen[0]
        middle[part] = _median(seen)
        if 2 * n_finite < seen.size:
            missing = True
        elif n_alike == seen.size and not missing:
            missing = _are_alike(values, members[starts[part] : starts[part + 1]])
    return missing


@compiled(borrows=True)
def _are_alike(values: NDArray[np.generic], places: NDArray[np.int64]) -> bool:
    for place in places:  # noqa: SIM110 - compiled loops have no generators
        if values[place] != values[places[0]]:
            return False
    return True


@compiled(borrows=True)
def _median(values: NDArray[np.float64]) -> float:
    """Median of finite numbers.

    Each value that may still be the lower middle one is tried: how many are below it, how many are
    not above? A dozen values settle it, and counting goes by vectors, which sorting does not.
    """
    rank = (values.size - 1) // 2
    lowest, highest = -np.inf, np.inf
    for tried in range(values.size):
        lower = float(values[tried])
        if not lowest < lower < highest:
            continue
        n_below = n_up_to = 0
        for i in range(values.size):
            n_below += values[i] < lower
            n_up_to += values[i] <= lower
        if n_below > rank:
            highest = lower
        elif n_up_to <= rank:
            lowest = lower
        else:
            break
    if values.size % 2:
        return lower
    upper = _next_above(values, lower) if n_up_to == rank + 1 else lower
    return (lower + upper) / 2


@compiled(borrows=True)
def _next_above(values: NDArray[np.float64], value: float) -> float:
    found = np.inf
    for i in range(values.size):
        found = min(found, values[i] if values[i] > value else np.inf)
    return found


@compiled
def _any_hot(
    middle: NDArray[np.float64], families: NDArray[np.int64], nearly_full: float, photon: float
) -> NDArray[np.bool_]:
    """Whether a part of each event is far brighter than most others, or close to full scale."""
    hot = np.zeros(len(middle), np.bool_)
    for event in range(len(middle)):
        for part in range(middle.shape[1]):
            hot[event] |= middle[event, part] >= nearly_full
        for family in families:
            own = np.sort(middle[event, family[0] : family[1]])
            if own.size < _FEWEST_TO_COMPARE:
                continue
            usual = (own[(own.size - 1) // 2] + own[own.size // 2]) / 2
            # The value below or at the upper quartile.
            spread = own[3 * (own.size - 1) // 4] - usual
            least = max(_LEAST_SPREAD * abs(usual), photon)
            hot[event] |= own[-1] > usual + _FAR_ABOVE * max(spread, least)
    return hot
