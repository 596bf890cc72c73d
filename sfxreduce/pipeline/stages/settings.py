"""What a user chose for one filter run: one value, made once at the edge."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sfxreduce.audit.sample import AUDIT_SHARE, check_share
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import UsageError
from sfxreduce.scorers.protocol import Scorer

__all__ = ["FilterSettings"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSettings:
    """What the decisions on a run depend on besides the run itself.

    Parameters
    ----------
    scorer : Scorer
        What gives an event its number.
    threshold : float, optional
        Smallest score of a hit; the scorer's own if not given. It voids the promise.
    promise : Promise
        What share of the hits may be lost, with what confidence.
    drift : bool
        Whether to compare the run with what the scorer was calibrated on; the promise needs it.
    audit_share : float
        Share of the rejected events that is kept beside the hits, drawn at random.

    Raises
    ------
    UsageError
        If the threshold is not finite, or the share not one of 0 to 1.

    Examples
    --------
    >>> from sfxreduce.scorers.peaks.scorer import PeakScorer
    >>> FilterSettings(scorer=PeakScorer(min_peaks=10)).promise.max_loss
    0.01
    """

    scorer: Scorer
    threshold: float | None = None
    promise: Promise = field(default_factory=Promise)
    drift: bool = True
    audit_share: float = AUDIT_SHARE

    def __post_init__(self) -> None:
        check_share(self.audit_share)
        given = self.threshold
        if given is not None and not abs(given) <= float(np.finfo(np.float32).max):
            raise UsageError(f"expected --threshold to be a finite number, found {given}")
