"""Exact bounds from a sample: how large an unseen share or number can still be.

Nothing here assumes anything about the data. The chance is that of the draw alone: events taken
at random, with replacement or without. Every bound is one-sided.

References
----------
.. [1] C. J. Clopper and E. S. Pearson, Biometrika 26 (1934) 404. doi:10.2307/2331986
.. [2] W. Wang, J. Am. Stat. Assoc. 110 (2015) 1491. doi:10.1080/01621459.2014.966191
.. [3] P. B. Stark, ALPHA: audit that learns from previously hand-audited ballots (2022).
       doi:10.48550/arXiv.2201.02707
.. [4] I. Waudby-Smith and A. Ramdas, Confidence sequences for sampling without replacement (2020).
       doi:10.48550/arXiv.2006.04347
.. [5] J. Ville, Étude critique de la notion de collectif, Gauthier-Villars (1939).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, logsumexp

from sfxreduce.errors import UsageError

__all__ = [
    "audits_needed",
    "evidence",
    "number_lower",
    "number_upper",
    "number_upper_sequential",
    "true_number_upper",
]

ALTERNATIVES = np.array([0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7])
"""Rates, as parts of the rate under test, that a sequential audit bets on. Fixed: bets chosen
after the data were seen would prove nothing."""


def number_upper(found: int, *, audited: int, population: int, risk: float) -> int:
    """Largest number in a finite population that still fits so few finds, drawn once.

    The exact hypergeometric bound [2]_. The sample's size must not depend on what was found in it;
    for looks in between see `number_upper_sequential`.

    Parameters
    ----------
    found : int
        Members of the sample that count.
    audited : int
        Size of the sample, drawn at random and without replacement.
    risk : float
        Chance, over samples, that the number exceeds the bound.

    Raises
    ------
    UsageError
        If the sample is larger than the population, or has more finds than draws.

    Examples
    --------
    >>> number_upper(0, audited=980, population=98_000, risk=0.05)
    297
    """
    _check_sample(found, audited, population)

    def excluded(number: int) -> bool:
        return _chance_of_at_most(found, population, number, audited) <= risk

    # Any larger number would leave fewer of the others than were drawn.
    most = population - (audited - found)
    return _first(found + 1, most + 1, excluded) - 1


def number_lower(found: int, *, audited: int, population: int, risk: float) -> int:
    """Smallest number in a finite population that still fits so many finds, drawn once.

    Examples
    --------
    >>> number_lower(290, audited=300, population=2000, risk=0.01)
    1873
    """
    others = number_upper(audited - found, audited=audited, population=population, risk=risk)
    return population - others


def number_upper_sequential(found: ArrayLike, *, population: int, risk: float) -> int:
    """Largest number in a finite population that still fits the finds, looked at after each draw.

    One may look after each draw and stop at will, for any reason [4]_. If there are at least M
    members that count, `evidence` against it is the purse of a gambler at fair odds or worse: by
    Ville's inequality [5]_ the chance that it ever reaches ``1 / risk`` is at most `risk`. Evidence
    grows with M, so the bound holds for all M at once, and the promise may be chosen later.

    Parameters
    ----------
    found : array_like of bool
        Whether each draw counts, in the order of the draws, without replacement.
    risk : float
        Chance, over orders, that the bound falls below the number at any time.

    Raises
    ------
    UsageError
        If there are more draws than members.

    Examples
    --------
    >>> number_upper_sequential([False] * 980, population=98_000, risk=0.05)
    354
    """
    outcomes = np.asarray(found, np.bool_)
    n_found = int(np.count_nonzero(outcomes))
    _check_sample(n_found, outcomes.size, population)

    def excluded(number: int) -> bool:
        path = evidence(outcomes, population=population, number=number)
        return bool(np.max(path, initial=-np.inf) >= -math.log(risk))

    most = population - (outcomes.size - n_found)
    return _first(n_found + 1, most + 1, excluded) - 1


def evidence(found: ArrayLike, *, population: int, number: int) -> NDArray[np.float64]:
    """Logarithm of the evidence, after each draw, against at least `number` members that count.

    A mixture of likelihood ratios for draws without replacement, in the manner of ALPHA [3]_: what
    a gambler owns who bets, with equal parts of one unit, that the rate is any of `ALTERNATIVES`
    times the one under test. Once `number` members have been found it is minus infinity.

    Parameters
    ----------
    found : array_like of bool
        Whether each draw counts, in order.
    number : int
        At least 1.

    Returns
    -------
    ndarray of float64
        Shape (draw,). Infinite where the draws rule the number out.
    """
    outcomes = np.asarray(found, np.bool_)
    after: NDArray[np.int64] = np.cumsum(outcomes, dtype=np.int64)
    before: NDArray[np.int64] = after - outcomes
    rate = (number - before) / (population - np.arange(outcomes.size))
    ruled_out = np.maximum.accumulate(((rate >= 1) & ~outcomes) | (rate > 1))
    # Where it is ruled out, or already found, the ratio does not matter.
    rate = np.clip(rate, 0.0, np.nextafter(1.0, 0.0))
    bet = ALTERNATIVES[:, np.newaxis]
    with np.errstate(divide="ignore"):
        steps = np.where(outcomes, np.log(bet), np.log1p(-bet * rate) - np.log1p(-rate))
    owned = logsumexp(np.cumsum(steps, axis=1), axis=0) - math.log(len(ALTERNATIVES))
    owned[ruled_out] = np.inf
    owned[after >= number] = -np.inf
    return np.asarray(owned, np.float64)


def true_number_upper(recognised: int, *, sensitivity: float, risk: float) -> int:
    """Largest true number that fits a number recognised, each with at least some chance.

    ``recognised / sensitivity`` would only be right on average: of two members, a labeller of
    sensitivity 0.9 overlooks both once in a hundred times.

    Parameters
    ----------
    recognised : int
        Members that the labeller would recognise, or a bound on them.
    sensitivity : float
        Smallest chance that it recognises a member.
    risk : float
        Chance that the true number exceeds the bound.

    Raises
    ------
    UsageError
        If the sensitivity is not above zero and at most one.

    Examples
    --------
    >>> true_number_upper(0, sensitivity=0.9, risk=0.01), 0 / 0.9
    (1, 0.0)
    """
    if not 0 < sensitivity <= 1:
        raise UsageError(
            f"audit: expected a labeller that recognises some hits, found a sensitivity of "
            f"{sensitivity:g}; seed more known hits, or use a better labeller"
        )
    if sensitivity == 1:
        return recognised

    def excluded(number: int) -> bool:
        return bool(bdtr(recognised, number, sensitivity) <= risk)

    most = recognised + 1
    while not excluded(most):
        most *= 2
    return _first(recognised + 1, most, excluded) - 1


def audits_needed(*, population: int, allowed: int, risk: float, found: int = 0) -> int:
    """Smallest sample that bounds the number at `allowed` when it turns up `found` members.

    Parameters
    ----------
    allowed : int
        What `number_upper` is to stay at or below.
    found : int
        Finds that are to be borne. With none, an audit fails whenever a single one turns up.

    Returns
    -------
    int
        The whole population, if no smaller sample suffices.

    Examples
    --------
    >>> audits_needed(population=98_000, allowed=20, risk=0.05)
    13028
    >>> audits_needed(population=98_000, allowed=20, risk=0.05, found=3)
    32261
    """
    if allowed >= population:
        return 0

    def enough(audited: int) -> bool:
        return _chance_of_at_most(found, population, allowed + 1, audited) <= risk

    return _first(min(found + 1, population), population, enough)


def _chance_of_at_most(found: int, population: int, number: int, audited: int) -> float:
    """Chance that a sample without replacement has no more of the members that count."""
    from scipy.stats import hypergeom  # 0.7 s, for the few commands that ask

    return float(hypergeom.cdf(found, population, number, audited))


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """First number from low on that something holds for, once it holds it stays; high if none."""
    if low >= high:
        return high
    return low + bisect_left(range(low, high), True, key=holds)


def _check_sample(found: int, audited: int, population: float) -> None:
    """Refuse counts that no sample has."""
    if not 0 <= found <= audited <= population:
        raise UsageError(
            f"bounds: expected 0 <= found <= audited <= population, found {found}, {audited} and "
            f"{population}"
        )
