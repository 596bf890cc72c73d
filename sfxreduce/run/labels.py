"""From peak counts to labels: hit, miss, or left open.

The poster's rule: of the events of a run, those in the top quarter by number of Bragg peaks are
hits and those in the bottom quarter misses. The middle stays open. It is left out of training,
but never out of a report: it holds the weak hits, which are the hard ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Label", "Labels"]


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
