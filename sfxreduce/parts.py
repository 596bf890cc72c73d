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

from sfxreduce.decide import Reason
from sfxreduce.geometry import Detector, Window

__all__ = ["Parts", "inspect_parts", "parts_of"]

_FEWEST_IN_PANEL = 64
_FEWEST_IN_TILE = 4096
_LAST_ROWS = 16
_TILE = 175
_LOOKED_AT = 256
_FEWEST_TO_COMPARE = 4
_FAR_ABOVE = 10.0
_LEAST_SPREAD = 0.25
_NEARLY_FULL = 0.9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Where the good pixels of each part lie in the flat pixels of an event.

    Parameters
    ----------
    members : tuple of ndarray of int64
        Of each part; a pixel may be in several.
    sample : ndarray of int64
        Shape (part, pixel): some of each, spread evenly.
    families : tuple of slice
        Parts that are alike and can be compared with one another.
    """

    members: tuple[NDArray[np.int64], ...]
    sample: NDArray[np.int64]
    families: tuple[slice, ...]


@lru_cache(maxsize=4)
def parts_of(detector: Detector, window: Window | None) -> Parts:
    """Panels, squares of 175 pixels and last rows among the pixels that a scorer sees.

    Parameters
    ----------
    detector : Detector
    window : Window or None
        None for whole frames.
    """
    n_y, n_x = detector.panel_shape
    if window is None:
        index, good = np.arange(detector.mask.size), detector.good().ravel()
    else:
        index, good = window.gather(detector).ravel(), window.good(detector).ravel()
    place = np.flatnonzero(good)
    panel, y, x = np.unravel_index(index[place], (len(detector.panels), n_y, n_x))
    tile = (y // _TILE) * -(-n_x // _TILE) + x // _TILE
    panels = _groups(place, panel, _FEWEST_IN_PANEL) if len(detector.panels) > 1 else []
    tiles = _groups(place, tile * len(detector.panels) + panel, _FEWEST_IN_TILE)
    last = place[(panel == len(detector.panels) - 1) & (y >= n_y - _LAST_ROWS)]
    ends = [last] if last.size >= _FEWEST_IN_PANEL else []
    members = (*panels, *tiles, *ends)
    spread = [part[np.linspace(0, part.size - 1, _LOOKED_AT).astype(np.int64)] for part in members]
    return Parts(
        members=members,
        sample=np.stack(spread) if spread else np.zeros((0, _LOOKED_AT), np.int64),
        families=(slice(0, len(panels)), slice(len(panels), len(panels) + len(tiles))),
    )


def inspect_parts(
    pixels: NDArray[np.generic], parts: Parts, *, saturation_adu: float = math.nan
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

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).

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
    reasons = np.zeros(len(pixels), np.uint32)
    for event, flat in enumerate(pixels.reshape(len(pixels), -1)):
        seen = flat[parts.sample]
        if _any_missing(flat, seen, parts):
            reasons[event] |= Reason.PANELS_MISSING
        if _any_hot(seen, parts, saturation_adu):
            reasons[event] |= Reason.PANEL_HOT
    return reasons


def _groups(
    place: NDArray[np.int64], group: NDArray[np.int64], fewest: int
) -> list[NDArray[np.int64]]:
    """Places of each group that has enough of them."""
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    return [part for part in np.split(place[order], starts[1:]) if part.size >= fewest]


def _any_missing(flat: NDArray[np.generic], seen: NDArray[np.generic], parts: Parts) -> bool:
    """Whether a part holds one and the same value everywhere, or hardly a number."""
    constant = np.all(seen == seen[:, :1], axis=1)
    if flat.dtype.kind == "f":
        finite = np.isfinite(seen)
        if np.any(finite.mean(axis=1) < 0.5):
            return True
    return any(
        bool(np.all(flat[parts.members[part]] == flat[parts.members[part][0]]))
        for part in np.flatnonzero(constant)
    )


def _any_hot(seen: NDArray[np.generic], parts: Parts, saturation_adu: float) -> bool:
    """Whether a part is far brighter than most others, or close to full scale."""
    # A pixel that is not a number counts as dark: a part without numbers is missing, not hot.
    middle = np.median(np.nan_to_num(seen.astype(np.float64), posinf=0, neginf=0), axis=1)
    if np.any(middle >= _NEARLY_FULL * saturation_adu):
        return True
    for family in parts.families:
        own = middle[family]
        if own.size < _FEWEST_TO_COMPARE:
            continue
        usual = float(np.median(own))
        spread = float(np.quantile(own, 0.75, method="lower")) - usual
        least = max(_LEAST_SPREAD * abs(usual), 1.0)
        if np.any(own > usual + _FAR_ABOVE * max(spread, least)):
            return True
    return False
