"""The poster's own labels: hits above the upper quartile of peak counts, misses below the lower."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce.errors import LabelError, UsageError
from sfxreduce.run.labels import Label, Labels

__all__ = ["MIN_COUNT", "quartile_labels"]

MIN_COUNT = 4
"""Fewest peaks that chance does not put on an empty frame; an upper quartile below it would call
noise a hit."""


def quartile_labels(
    counts: ArrayLike,
    *,
    lower: float | None = None,
    upper: float | None = None,
    min_count: float = MIN_COUNT,
) -> Labels:
    """Label events by their number of peaks: at most `lower` a miss, at least `upper` a hit.

    Parameters
    ----------
    counts : array_like
        Peaks of each event, shape (event,). An event without a count (NaN) stays `Label.MAYBE`
        and has no part in the quartiles.
    lower, upper : float, optional
        Thresholds in peaks; the lower and the upper quartile of the counts if not given.
    min_count : float
        Smallest upper quartile that is believed. A given `upper` is not held against it.

    Raises
    ------
    LabelError
        If no event has a count, if the quartiles are equal, or if the upper one is below
        `min_count`.
    UsageError
        If both thresholds are given and `lower` is not below `upper`.

    Examples
    --------
    >>> labels = quartile_labels([0, 0, 1, 2, 5, 9, 30, 40])
    >>> labels.count(Label.MISS), labels.count(Label.MAYBE), labels.count(Label.HIT)
    (2, 4, 2)
    """
    number = np.asarray(counts, np.float64)
    if lower is not None and upper is not None and not lower < upper:
        raise UsageError(
            f"labels: expected --miss-at-most below --hit-at-least, found {lower:g} and {upper:g}"
        )
    miss_at_most = _quartile(number, 0.25) if lower is None else float(lower)
    hit_at_least = _quartile(number, 0.75) if upper is None else float(upper)
    if not miss_at_most < hit_at_least:
        raise LabelError(
            f"labels: the peak counts do not tell events apart: misses have at most "
            f"{miss_at_most:g} peaks and hits at least {hit_at_least:g}; pass --miss-at-most and "
            "--hit-at-least"
        )
    if upper is None and hit_at_least < min_count:
        raise LabelError(
            f"labels: expected an upper quartile of at least {min_count:g} peaks, found "
            f"{hit_at_least:g}: too few hits in this run; pass --hit-at-least (and --miss-at-most)"
        )
    label = np.full(number.shape, Label.MAYBE, np.int8)
    label[number <= miss_at_most] = Label.MISS
    label[number >= hit_at_least] = Label.HIT
    return Labels(label=label, miss_at_most=miss_at_most, hit_at_least=hit_at_least)


def _quartile(number: NDArray[np.float64], share: float) -> float:
    """Quantile of the counts that are there."""
    known = number[~np.isnan(number)]
    if known.size == 0:
        raise LabelError(
            f"labels: none of {number.size} events has a peak count; pass --miss-at-most and "
            "--hit-at-least, or find out why no event could be read"
        )
    value = float(np.quantile(known, share))
    return value if math.isfinite(value) else math.nan
