"""The poster's own labels: hits above the upper quartile of peak counts, misses below the lower."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from sfxreduce.errors import LabelError
from sfxreduce.run.labels import Labels, label_counts

__all__ = ["MIN_COUNT", "quartile_labels"]

MIN_COUNT = 4
"""Fewest peaks that chance does not put on an empty frame; an upper quartile below it would call
noise a hit."""


def quartile_labels(counts: ArrayLike, *, min_count: float = MIN_COUNT) -> Labels:
    """Label a quarter of the events hits, those with most peaks, and another misses.

    Parameters
    ----------
    counts : array_like
        Peaks of each event, shape (event,). An event without a count (NaN) stays `Label.MAYBE`
        and has no part in the quartiles.
    min_count : float
        Smallest upper quartile that is believed.

    Raises
    ------
    LabelError
        If no event has a count, if the quartiles are equal, or if the upper one is below
        `min_count`: fewer than a quarter of the events are hits.

    Examples
    --------
    >>> from sfxreduce.run.labels import Label
    >>> labels = quartile_labels([0, 0, 1, 2, 5, 9, 30, 40])
    >>> labels.count(Label.MISS), labels.count(Label.MAYBE), labels.count(Label.HIT)
    (2, 4, 2)
    """
    number = np.asarray(counts, np.float64)
    known = number[~np.isnan(number)]
    if known.size == 0:
        raise LabelError(
            f"labels: none of {number.size} events has a peak count; look with 'sfxreduce filter "
            "--scorer peaks' why no event could be read"
        )
    lower, upper = map(float, np.quantile(known, [0.25, 0.75]))
    if not (lower < upper and upper >= min_count):
        raise LabelError(
            f"labels: expected an upper quartile of at least {min_count:g} peaks and a smaller "
            f"lower one, found {upper:g} and {lower:g}: fewer than a quarter of the events are "
            "hits; leave 'quartiles' out, the default counts peaks"
        )
    return label_counts(number, miss_at_most=lower, hit_at_least=upper)
