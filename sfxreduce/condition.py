"""What is odd about an event's pixels, before any scorer sees them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfxreduce.decide import Reason

__all__ = ["MANY_NONFINITE", "MANY_SATURATED", "inspect_pixels"]

MANY_NONFINITE = 0.01
"""Share of good pixels that are not finite from which an event is not judged."""

MANY_SATURATED = 0.01
"""Share of saturated good pixels above which a low score proves nothing."""

SAMPLE = 4096


def inspect_pixels(
    pixels: NDArray[np.generic], good: NDArray[np.bool_], *, saturation_adu: float = math.nan
) -> NDArray[np.uint32]:
    """Reasons not to trust a score, event by event.

    Parameters
    ----------
    pixels : ndarray
        Shape (event, ...), in ADU.
    good : ndarray of bool
        Pixels that count, in the shape of one event.
    saturation_adu : float
        Full scale; NaN if unknown.

    Returns
    -------
    ndarray of uint32
        `Reason` bits, shape (event,).

    Examples
    --------
    >>> noise = np.arange(12.0).reshape(1, 3, 4)
    >>> inspect_pixels(np.concatenate([noise, 0 * noise]), np.ones((3, 4), bool)).tolist()
    [0, 128]
    """
    flat = pixels.reshape(len(pixels), -1)
    places = np.flatnonzero(good)
    everywhere = places.size == flat.shape[1]
    reasons = np.zeros(len(pixels), np.uint32)
    for event, values in enumerate(flat):
        trusted = values if everywhere else values[places]
        reasons[event] = _inspect(trusted, saturation_adu)
    return reasons


def _inspect(values: NDArray[np.generic], saturation_adu: float) -> Reason:
    found = Reason(0)
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        n_bad = values.size - int(np.count_nonzero(finite))
        if n_bad:
            share = n_bad / values.size
            found |= Reason.NONFINITE_MANY if share >= MANY_NONFINITE else Reason.NONFINITE_FEW
            values = values[finite]
    if _is_constant(values):
        found |= Reason.CONSTANT
    if not math.isnan(saturation_adu):
        n_full = int(np.count_nonzero(np.greater_equal(values, saturation_adu)))
        if n_full > MANY_SATURATED * values.size:
            found |= Reason.SATURATED
    return found


def _is_constant(values: NDArray[np.generic]) -> bool:
    """Whether all values are one; a sample settles it for nearly every event."""
    if values.size == 0:
        return True
    sample = values[:: max(values.size // SAMPLE, 1)]
    return bool(np.all(sample == values[0]) and np.all(values == values[0]))
