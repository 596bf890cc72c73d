"""From peak counts to labels: hit, miss, or left open.

Many peaks make a hit, few a miss. What lies between stays open. It is left out of training, but
never out of a report: it holds the weak hits, which are the hard ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce.errors import UsageError

__all__ = ["Label", "Labels", "label_counts"]


class Label(IntEnum):
    """What an event is held to be, by a rule or by an expert's eye."""

    MISS = 0
    MAYBE = 1
    HIT = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Labels:
    """The label of every event of a run, in source order.

    Parameters
    ----------
    label : ndarray of int8
        `Label` of each event.
    miss_at_most, hit_at_least : float
        The thresholds applied, in peaks.
    """

    label: NDArray[np.int8]
    miss_at_most: float
    hit_at_least: float

    def count(self, label: Label) -> int:
        """Count the events with this label."""
        return int(np.count_nonzero(self.label == label))


def label_counts(counts: ArrayLike, *, miss_at_most: float, hit_at_least: float) -> Labels:
    """Label events by their number of peaks.

    Parameters
    ----------
    counts : array_like
        Peaks of each event, shape (event,). An event without a count (NaN) stays `Label.MAYBE`.
    miss_at_most, hit_at_least : float
        Most peaks of a miss, and fewest of a hit.

    Raises
    ------
    UsageError
        If an event could be both.

    Examples
    --------
    >>> labels = label_counts([0, 2, 3, 7, 8, float("nan")], miss_at_most=2, hit_at_least=8)
    >>> [Label(label).name for label in labels.label]
    ['MISS', 'MISS', 'MAYBE', 'MAYBE', 'HIT', 'MAYBE']
    """
    if not miss_at_most < hit_at_least:
        raise UsageError(
            f"labels: expected --miss-at-most below --min-peaks, found {miss_at_most:g} and "
            f"{hit_at_least:g}"
        )
    number = np.asarray(counts, np.float64)
    label = np.full(number.shape, Label.MAYBE, np.int8)
    label[number <= miss_at_most] = Label.MISS
    label[number >= hit_at_least] = Label.HIT
    return Labels(label=label, miss_at_most=miss_at_most, hit_at_least=hit_at_least)
