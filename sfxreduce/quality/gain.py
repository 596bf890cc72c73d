"""Gain of a detector, from mean and variance of small squares of many frames."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sfxreduce.quality.frame_statistics import cell_moments

__all__ = ["estimate_gain"]

_BINS = 24  # by which gains of 1 to 100 come out within a twentieth, as tested; chosen


def estimate_gain(frames: NDArray[np.generic], good: NDArray[np.bool_]) -> float:
    """Gain from mean and variance of small squares of many frames.

    Parameters
    ----------
    frames : ndarray
        Shape (event, y, x) or (event, panel, y, x), in ADU.
    good : ndarray of bool
        Shape of a frame.

    Returns
    -------
    float
        ADU per photon; NaN if the variance does not follow the mean.

    Examples
    --------
    >>> photons = np.random.default_rng(0).poisson(np.linspace(1, 9, 128), (4, 128, 128))
    >>> round(estimate_gain(20 * photons, np.ones((128, 128), bool)))
    20
    """
    moments = [cell_moments(frame, good) for frame in frames]
    mean = np.concatenate([m.ravel() for m, _ in moments]) if moments else np.zeros(0)
    variance = np.concatenate([v.ravel() for _, v in moments]) if moments else np.zeros(0)
    whole = np.isfinite(mean) & np.isfinite(variance)
    mean, variance = mean[whole], variance[whole]
    if mean.size < 2 * _BINS:
        return math.nan
    bins = np.array_split(np.argsort(mean), _BINS)
    x = np.array([np.median(mean[b]) for b in bins])
    y = np.array([np.median(variance[b]) for b in bins])
    return _slope(x, y)


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Slope of y over x, weighted for a scatter that grows with y; NaN if y does not follow x."""
    weight = 1.0 / np.maximum(y, 1e-3 * np.median(y) + 1e-12) ** 2
    centre_x, centre_y = (np.average(of, weights=weight) for of in (x, y))
    spread = np.sum(weight * (x - centre_x) ** 2)
    if not spread > 0:
        return math.nan
    slope = float(np.sum(weight * (x - centre_x) * (y - centre_y)) / spread)
    left = np.sum(weight * (y - centre_y - slope * (x - centre_x)) ** 2)
    follows = left < 0.5 * np.sum(weight * (y - centre_y) ** 2)
    return slope if slope > 0 and follows else math.nan
