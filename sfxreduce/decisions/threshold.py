"""How high the threshold may be when only so many hits may be lost.

A threshold is chosen on labelled hits that no model has learned from. Two rules promise something
about the hits it will meet later, and differ in what they take those to be:

- `binomial_threshold`: hits like the labelled ones, drawn at random from one population. The
  threshold is an order statistic of their scores: a one-sided tolerance limit [1]_, which is also
  what sequential testing of thresholds from low to high comes to [2]_.
- `worst_run_threshold`: the hits of one more run like the labelled runs. Hits of one run resemble
  each other, so many hits of few runs prove less than their number says.

With too few hits, or too few runs, neither can promise anything, and every event is kept.

References
----------
.. [1] S. S. Wilks, Ann. Math. Stat. 12 (1941) 91. doi:10.1214/aoms/1177731788
.. [2] A. N. Angelopoulos et al., Learn then test (2021). doi:10.48550/arXiv.2110.01052
.. [3] C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404. doi:10.2307/2331986
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, betaincinv

from sfxreduce.errors import LabelError, UsageError

__all__ = [
    "Promise",
    "Rule",
    "Threshold",
    "at_most",
    "binomial_threshold",
    "given_threshold",
    "hits_needed",
    "losses_allowed",
    "share_upper",
    "worst_run_threshold",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What is to hold, and how surely.

    Parameters
    ----------
    max_loss : float
        Largest share of the hits that may be rejected.
    confidence : float
        Chance that the share is indeed no larger.

    Raises
    ------
    UsageError
        If either is not between 0 and 1.
    """

    max_loss: float = 0.01
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if not (0 < self.max_loss < 1 and 0 < self.confidence < 1):
            raise UsageError(
                "promise: expected --max-loss and --confidence between 0 and 1, found "
                f"{self.max_loss} and {self.confidence}"
            )

    @property
    def risk(self) -> float:
        """Chance that the promise fails, for a statement that is right with `confidence`."""
        # 1 - 0.95 is 0.050000000000000044, by which an exact rule would miss its own table.
        return round(1.0 - self.confidence, 12)


class Rule(StrEnum):
    """How a threshold came to be."""

    BINOMIAL = "binomial"
    WORST_RUN = "worst-run"
    GIVEN = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Smallest score of a kept event, and what is known of the hits below it.

    Parameters
    ----------
    value : float
        Minus infinity if nothing can be promised: every event is kept.
    n_hits : int
        Labelled hits it was chosen on.
    n_runs : int or None
        Runs they came from; None where the rule does not tell runs apart.
    n_lost : int
        Of these hits, the ones below it.
    loss_upper : float
        Bound on the share of hits below it, at the confidence of the promise.
    """

    value: float
    rule: Rule
    promise: Promise
    n_hits: int
    n_runs: int | None
    n_lost: int
    loss_upper: float

    @property
    def certified(self) -> bool:
        """Whether a promise stands behind it. A threshold given by hand has none."""
        return self.rule is not Rule.GIVEN and self.value > -math.inf

    @property
    def shortage(self) -> str:
        """Why nothing can be promised by these hits, in words."""
        if self.rule is Rule.GIVEN:
            return "the threshold was given"
        hits = f"{self.n_hits} labelled hits"
        base = hits if self.n_runs is None else f"{self.n_runs} runs with labelled hits"
        return (
            f"{base} are too few to promise, with {100 * self.promise.confidence:.4g} % "
            f"confidence, that at most {at_most(self.promise.max_loss)} of the hits are lost"
        )

    def sentence(self, *, hit: str) -> str:
        """Say what is promised, and what it rests on.

        Parameters
        ----------
        hit : str
            What counts as a hit: "an event with 10 or more true peaks".
        """
        hits = f"{self.n_hits} labelled hits"
        if self.n_runs is not None:
            hits += f" of {self.n_runs} runs"
        lost = f"of {hits} it loses {self.n_lost}"
        sure = f"with {100 * self.promise.confidence:.4g} % confidence"
        if self.rule is Rule.GIVEN:
            text = f"The threshold {self.value:.6g} was given, nothing is promised; {lost}"
        elif not self.certified:
            text = f"Every event is kept: {self.shortage}"
        else:
            whose = "of one more such run" if self.rule is Rule.WORST_RUN else "like the labelled"
            text = (
                f"{sure.capitalize()} at most {at_most(self.loss_upper)} of the hits {whose} score "
                f"below {self.value:.6g}; {lost}"
            )
        return f"{text}. A hit is {hit}."


def at_most(share: float) -> str:
    """Write a share that is not to be exceeded in per cent, rounded up to two decimals.

    Examples
    --------
    >>> at_most(0.01), at_most(0.008301), at_most(0.0)
    ('1 %', '0.84 %', '0 %')
    """
    return f"{math.ceil(round(share * 1e4, 6)) / 100:.4g} %"


def losses_allowed(n_hits: int, *, promise: Promise) -> int:
    """Count the labelled hits that may lie below a threshold that keeps the promise.

    The largest k for which k or fewer losses among so many hits would be a coincidence of at most
    ``promise.risk``, were the true loss larger than promised.

    Returns
    -------
    int
        -1 if even a threshold that loses none of them promises too little.

    Examples
    --------
    >>> [losses_allowed(n, promise=Promise()) for n in (298, 299, 1000, 5000)]
    [-1, 0, 4, 38]
    """
    risks = bdtr(np.arange(n_hits + 1.0), n_hits, promise.max_loss)
    return int(np.searchsorted(risks, promise.risk, side="right")) - 1


def hits_needed(*, promise: Promise, lost: int = 0) -> int:
    """Smallest number of labelled hits that allows so many of them to be lost.

    Examples
    --------
    >>> hits_needed(promise=Promise()), hits_needed(promise=Promise(max_loss=0.001))
    (299, 2995)
    """

    def enough(n_hits: int) -> bool:
        return bool(bdtr(float(lost), n_hits, promise.max_loss) <= promise.risk)

    most = lost + 1
    while not enough(most):
        most *= 2
    return lost + 1 + bisect_left(range(lost + 1, most), True, key=enough)


def binomial_threshold(
    hit_scores: ArrayLike, *, promise: Promise, groups: ArrayLike | None = None
) -> Threshold:
    """Highest threshold that keeps the promise for hits like these.

    With `k` of `losses_allowed`, the (k + 1)-th smallest score. For any distribution of scores the
    chance that more than ``max_loss`` of the population's hits lie below it is at most
    ``promise.risk``. The scores must be independent of the scorer's training, and the hits drawn
    at random from what the promise is about: hits of few runs are not, see `worst_run_threshold`.

    Parameters
    ----------
    hit_scores : array_like
        Scores of the labelled hits, shape (hit,). A hit without a score (NaN) is kept whatever the
        threshold is.
    groups : array_like, optional
        Shape (hit,): the experiment each hit is of. No experiment then loses a larger share of its
        own hits than promised of all: the threshold can only become lower, and what is promised
        still holds.

    Returns
    -------
    Threshold
        Minus infinity if there are fewer than `hits_needed`.

    Examples
    --------
    >>> chosen = binomial_threshold(np.arange(1000.0), promise=Promise())
    >>> chosen.value, chosen.n_lost, round(chosen.loss_upper, 5)
    (4.0, 4, 0.00913)
    >>> binomial_threshold(np.arange(298.0), promise=Promise()).value
    -inf
    """
    scores = _ascending(hit_scores)
    allowed = losses_allowed(scores.size, promise=promise)
    value = _tolerated(scores, allowed)
    if groups is not None:
        own = np.asarray(groups)
        parts = [np.asarray(hit_scores)[own == group] for group in np.unique(own)]
        value = min(value, _lowest_of_runs([_ascending(part) for part in parts], promise))
    return Threshold(
        value=value,
        rule=Rule.BINOMIAL,
        promise=promise,
        n_hits=scores.size,
        n_runs=None,
        n_lost=int(np.count_nonzero(scores < value)),
        # From the number allowed, not from the number lost: it is fixed before scores are seen.
        loss_upper=share_upper(allowed, scores.size, confidence=promise.confidence)
        if value > -math.inf
        else 0.0,
    )


def worst_run_threshold(hit_scores: Sequence[ArrayLike], *, promise: Promise) -> Threshold:
    """Lowest of the thresholds that would have kept the promised share of hits in each run.

    If one more run is like the m given ones, each of the m + 1 is equally likely to need the lowest
    threshold: the chance that more than ``max_loss`` of the next run's own hits are lost is at most
    1 / (m + 1), over the given runs and the next one together. Nothing is assumed about how hits of
    one run resemble each other.

    Parameters
    ----------
    hit_scores : sequence of array_like
        Scores of the labelled hits of every run that the model has not learned from. Runs without
        hits do not count.

    Returns
    -------
    Threshold
        Minus infinity if there are too few runs: 19 are needed for a confidence of 0.95.

    Examples
    --------
    >>> runs = [np.arange(200.0) + shift for shift in range(19)]
    >>> chosen = worst_run_threshold(runs, promise=Promise())
    >>> chosen.value, chosen.n_lost, chosen.n_runs
    (2.0, 3, 19)
    """
    runs = [scores for scores in map(_ascending, hit_scores) if scores.size]
    enough = 1.0 / (len(runs) + 1) <= promise.risk
    value = -math.inf
    if enough:
        value = _lowest_of_runs(runs, promise)
    return Threshold(
        value=value,
        rule=Rule.WORST_RUN,
        promise=promise,
        n_hits=sum(scores.size for scores in runs),
        n_runs=len(runs),
        n_lost=sum(int(np.count_nonzero(scores < value)) for scores in runs),
        loss_upper=promise.max_loss if value > -math.inf else 0.0,
    )


def given_threshold(value: float, hit_scores: ArrayLike, *, promise: Promise) -> Threshold:
    """Count what a threshold chosen elsewhere loses of labelled hits; nothing is promised.

    The bound holds only if the threshold was fixed without a look at these hits.

    Parameters
    ----------
    hit_scores : array_like
        Shape (hit,).
    promise : Promise
        Its confidence is that of the bound.

    Examples
    --------
    >>> given = given_threshold(30, [12, 31, 80, 95], promise=Promise())
    >>> given.n_lost, given.certified
    (1, False)
    """
    scores = _ascending(hit_scores)
    lost = int(np.count_nonzero(scores < value))
    return Threshold(
        value=float(value),
        rule=Rule.GIVEN,
        promise=promise,
        n_hits=scores.size,
        n_runs=None,
        n_lost=lost,
        loss_upper=share_upper(lost, scores.size, confidence=promise.confidence),
    )


def _ascending(hit_scores: ArrayLike) -> NDArray[np.floating]:
    """Scores in order; a hit that is kept whatever the threshold is comes last."""
    scores = np.asarray(hit_scores)
    if scores.ndim != 1:
        raise LabelError(f"calibrate: expected one score per hit, found shape {scores.shape}")
    # A float32 score stays one: made wider, it would not compare as in `decide`.
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    return np.sort(np.where(np.isnan(scores), np.inf, scores))


def _tolerated(ascending: NDArray[np.floating], allowed: int) -> float:
    """Highest threshold with at most so many scores below it; minus infinity if there is none."""
    if allowed < 0:
        return -math.inf
    # Above the highest score nothing is known, however many hits are kept without one.
    finite = ascending[np.isfinite(ascending)]
    return float(finite[min(allowed, finite.size - 1)]) if finite.size else -math.inf


def _lowest_of_runs(ascending: Sequence[NDArray[np.floating]], promise: Promise) -> float:
    """Highest threshold at which each run loses no more than the promised share of its own hits.

    In whole hits: a run of n may lose floor(max_loss * n) of them.
    """
    allowed = (_whole(promise.max_loss * scores.size) for scores in ascending)
    own = (_tolerated(scores, most) for scores, most in zip(ascending, allowed, strict=True))
    return min(own, default=math.inf)


def _whole(number: float) -> int:
    """Integer part; 0.01 * 300 is a hair below 3 and means 3."""
    return math.floor(number + 1e-9)


def share_upper(found: int, of: int, *, confidence: float) -> float:
    """Largest share in an endless population that still fits so few finds in a random sample.

    The one-sided bound of Clopper and Pearson [3]_. It is not the upper end of a two-sided
    interval of the same confidence, which is wider.

    Parameters
    ----------
    found : int
        Members of the sample that count.
    of : int
        Size of the sample.
    confidence : float
        Chance, over samples, that the share does not exceed the bound.

    Raises
    ------
    UsageError
        If there are more finds than draws.

    Examples
    --------
    >>> round(share_upper(2, 1000, confidence=0.95), 5)
    0.00628
    """
    if not 0 <= found <= of:
        raise UsageError(f"bounds: expected 0 <= found <= drawn, found {found} and {of}")
    if found == of:
        return 1.0
    return float(betaincinv(found + 1, of - found, confidence))
