"""How good a classifier is, from integer counts.

Three habits of this module guard against the usual slips: it starts from counts, never from
rates; it names the axes of every table; and it keeps *hit loss*, the share of true hits that were
rejected, apart from accuracy, precision and predictive values, which all look good on a run with
few hits, however many of them were lost.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from sfxreduce.decisions.threshold import share_upper
from sfxreduce.errors import LabelError

__all__ = ["Confusion", "confusion", "roc_auc"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Numbers of events by truth and by decision. A ratio whose base is empty is NaN.

    Parameters
    ----------
    tp, fn : int
        True hits kept, true hits rejected.
    fp, tn : int
        True misses kept, true misses rejected.

    Raises
    ------
    LabelError
        If a count is negative.

    Examples
    --------
    >>> print(Confusion(tp=1276, fn=157, fp=11, tn=1422).table())
               kept  rejected
    true hit   1276       157
    true miss    11      1422
    """

    tp: int
    fn: int
    fp: int
    tn: int

    def __post_init__(self) -> None:
        for name in ("tp", "fn", "fp", "tn"):
            object.__setattr__(self, name, operator.index(getattr(self, name)))
        if min(self.tp, self.fn, self.fp, self.tn) < 0:
            raise LabelError(f"confusion: expected counts of events, found {self}")

    @property
    def recall(self) -> float:
        """Share of the true hits that were kept."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of the true misses that were rejected."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float:
        """Share of true hits among the kept events."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> float:
        """Negative predictive value: share of true misses among the rejected events."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def accuracy(self) -> float:
        """Share of all events decided as the truth has it."""
        return _ratio(self.tp + self.tn, self.tp + self.fn + self.fp + self.tn)

    @property
    def hit_loss(self) -> float:
        """Share of the true hits that were rejected."""
        return _ratio(self.fn, self.tp + self.fn)

    @property
    def hit_loss_upper95(self) -> float:
        """Upper bound of the hit loss, one-sided, 95 % confidence; see `share_upper`.

        It holds for hits drawn at random, and is NaN without hits.
        """
        n_hits = self.tp + self.fn
        return share_upper(self.fn, n_hits, confidence=0.95) if n_hits else math.nan

    def table(self) -> str:
        """Return the counts as text; rows are the truth, columns the decision."""
        width = max(4, *(len(str(n)) for n in (self.tp, self.fp)))
        return "\n".join(
            f"{truth:<9}  {kept:>{width}}  {rejected:>8}"
            for truth, kept, rejected in (
                ("", "kept", "rejected"),
                ("true hit", self.tp, self.fn),
                ("true miss", self.fp, self.tn),
            )
        )


def confusion(score: ArrayLike, is_hit: ArrayLike, *, threshold: float) -> Confusion:
    """Count events by truth and by what a threshold on the score would decide.

    Parameters
    ----------
    score : array_like
        Shape (event,). An event is kept unless its score is below the threshold, so one without
        a score (NaN) is kept, as in `sfxreduce.decisions.decide`.
    is_hit : array_like of bool
        The truth, shape (event,).
    threshold : float
        Smallest score of a kept event.

    Raises
    ------
    LabelError
        If scores and truth are of different lengths.

    Examples
    --------
    >>> confusion([0.9, 0.2, 0.8, 0.1], [True, True, False, False], threshold=0.5)
    Confusion(tp=1, fn=1, fp=1, tn=1)
    """
    value, hit = _paired(score, is_hit)
    kept = ~(value < threshold)
    return Confusion(
        tp=int(np.count_nonzero(kept & hit)),
        fn=int(np.count_nonzero(~kept & hit)),
        fp=int(np.count_nonzero(kept & ~hit)),
        tn=int(np.count_nonzero(~kept & ~hit)),
    )


def roc_auc(score: ArrayLike, is_hit: ArrayLike) -> float:
    """Chance that a hit scores above a miss, ties counted half: the area under the ROC curve.

    The rank statistic of Mann and Whitney [1]_, exact for any number of ties.

    Parameters
    ----------
    score : array_like
        Shape (event,). No score (NaN) ranks highest: such an event is kept at any threshold.
    is_hit : array_like of bool
        The truth, shape (event,).

    Returns
    -------
    float
        NaN if there are no hits or no misses.

    Raises
    ------
    LabelError
        If scores and truth are of different lengths.

    References
    ----------
    .. [1] J. A. Hanley and B. J. McNeil, Radiology 143 (1982) 29.
           doi:10.1148/radiology.143.1.7063747

    Examples
    --------
    >>> roc_auc([3, 2, 2, 1], [True, True, False, False])
    0.875
    """
    value, hit = _paired(score, is_hit)
    n_hits = int(np.count_nonzero(hit))
    n_misses = hit.size - n_hits
    if n_hits == 0 or n_misses == 0:
        return math.nan
    rank = rankdata(np.where(np.isnan(value), np.inf, value))
    above = float(rank[hit].sum()) - n_hits * (n_hits + 1) / 2
    return above / (n_hits * n_misses)


def _paired(score: ArrayLike, is_hit: ArrayLike) -> tuple[NDArray[np.floating], NDArray[np.bool_]]:
    """Scores and truth as arrays of one length."""
    value, hit = np.asarray(score), np.asarray(is_hit, np.bool_)
    # A float32 score stays one: made wider, 0.7 would fall below a threshold of 0.7.
    if not np.issubdtype(value.dtype, np.floating):
        value = value.astype(np.float64)
    if value.shape != hit.shape or value.ndim != 1:
        raise LabelError(
            f"metrics: expected one score and one label per event, found shapes {value.shape} "
            f"and {hit.shape}"
        )
    return value, hit


def _ratio(part: int, whole: int) -> float:
    """Quotient, NaN where there is nothing to share."""
    return part / whole if whole else math.nan
