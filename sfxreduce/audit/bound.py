"""How many hits can be among the rejected events, by an audit of some of them.

Rejected events are drawn at random and labelled, and so are kept ones. Then the number of hits
among all the rejected is at most `M`, that among all the kept at least `H`, and the hit loss at
most ``M / (M + H)``. This assumes nothing about scorer, threshold or data: the chance is that of
the draw. As in a risk-limiting audit of an election [1]_, a run that lost too many hits passes with
no more than a known probability, and one that does not pass keeps its events.

References
----------
.. [1] M. Lindeman and P. B. Stark, IEEE Secur. Priv. 10 (2012) 42. doi:10.1109/MSP.2012.56
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from sfxreduce.decisions.bounds import (
    audits_needed,
    number_lower,
    number_upper,
    number_upper_sequential,
    true_number_upper,
)
from sfxreduce.decisions.threshold import Promise, share_upper
from sfxreduce.errors import UsageError

__all__ = ["AuditMethod", "Finding", "Tally", "conclude", "rejects_needed"]


class AuditMethod(StrEnum):
    """How the rejected events are bounded; settled before any of them is labelled."""

    SEQUENTIAL = "eprocess-wor"
    FIXED = "hypergeom-fixed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What the labels of an audit came to.

    Parameters
    ----------
    rejected, kept : int
        Events of the run that were rejected and kept.
    audited : int
        Rejected events labelled, in the order drawn.
    found_at : tuple of int
        The draws, counted from 1, at which a hit was found among them.
    kept_audited, kept_hits : int
        Kept events labelled, and the hits among them.
    seeded, recognised : int
        Known hits shown to the labeller, and those it called hits. Without any, a hit is what the
        labels call one.

    Raises
    ------
    UsageError
        If the numbers contradict each other.
    """

    rejected: int
    kept: int
    audited: int
    found_at: tuple[int, ...]
    kept_audited: int
    kept_hits: int
    seeded: int = 0
    recognised: int = 0

    def __post_init__(self) -> None:
        draws = (0, *self.found_at)
        if (
            not 0 <= self.audited <= self.rejected
            or not 0 <= self.kept_hits <= self.kept_audited <= self.kept
            or not 0 <= self.recognised <= self.seeded
            or any(b <= a for a, b in zip(draws, self.found_at, strict=False))
            or draws[-1] > self.audited
        ):
            raise UsageError(f"audit: expected counts that fit each other, found {self}")

    @property
    def found(self) -> int:
        """Hits found among the rejected events labelled."""
        return len(self.found_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What an audit proves, all parts together with the confidence asked for.

    Parameters
    ----------
    missed_upper : int
        Most hits among the rejected events.
    hits_kept_lower : int
        Fewest hits among the kept events.
    sensitivity_lower : float
        Smallest chance that the labeller recognises a hit; 1 if a hit is what it calls one.
    loss_upper : float
        Largest hit loss.
    """

    missed_upper: int
    hits_kept_lower: int
    sensitivity_lower: float
    loss_upper: float


def conclude(counted: Tally, *, method: AuditMethod, confidence: float) -> Finding:
    """Bound the hit loss of a run by what its audit counted.

    The risk is shared between the parts that can each go wrong: the hits missed by the draw of
    rejects, the hits kept by that of kept events, and the labeller's sensitivity.

    Examples
    --------
    >>> counted = Tally(rejected=98_000, kept=2500, audited=20_000, found_at=(811, 15_020),
    ...                 kept_audited=300, kept_hits=290)
    >>> found = conclude(counted, method=AuditMethod.FIXED, confidence=0.95)
    >>> found.missed_upper, found.hits_kept_lower, round(found.loss_upper, 5)
    (29, 2340, 0.01224)
    """
    measured = counted.seeded > 0
    risk = _split(round(1.0 - confidence, 12), labeller_measured=measured)
    sensitivity = 1.0
    if measured:
        overlooked = counted.seeded - counted.recognised
        most = share_upper(overlooked, counted.seeded, confidence=1.0 - risk.labeller)
        sensitivity = 1.0 - most
    recognised = _recognised_upper(counted, method=method, risk=risk.missed)
    missed = true_number_upper(recognised, sensitivity=sensitivity, risk=risk.chance)
    missed = min(missed, counted.rejected)
    hits = number_lower(
        counted.kept_hits, audited=counted.kept_audited, population=counted.kept, risk=risk.kept
    )
    return Finding(
        missed_upper=missed,
        hits_kept_lower=hits,
        sensitivity_lower=sensitivity,
        loss_upper=missed / (missed + hits) if missed else 0.0,
    )


def rejects_needed(*, rejected: int, hits_kept: int, promise: Promise, found: int = 3) -> int:
    """Rejects to draw, if so many hits were kept and so many missed ones may turn up.

    For a sequential audit, which needs about a fifth more labels than one without looks.

    Examples
    --------
    >>> rejects_needed(rejected=98_000, hits_kept=2000, promise=Promise())
    40053
    """
    allowed = int(promise.max_loss * hits_kept / (1 - promise.max_loss))
    risk = _split(promise.risk, labeller_measured=False).missed
    fixed = audits_needed(population=rejected, allowed=allowed, risk=risk, found=found)
    return min(rejected, int(1.2 * fixed))


def _recognised_upper(counted: Tally, *, method: AuditMethod, risk: float) -> int:
    """Most events among the rejected that the labeller would call hits."""
    if method is AuditMethod.FIXED:
        return number_upper(
            counted.found, audited=counted.audited, population=counted.rejected, risk=risk
        )
    found = np.zeros(counted.audited, np.bool_)
    found[np.array(counted.found_at, np.intp) - 1] = True
    return number_upper_sequential(found, population=counted.rejected, risk=risk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Risk:
    """Parts of the chance that a finding is wrong; their sum is all of it."""

    missed: float
    kept: float
    labeller: float = 0.0
    chance: float = 0.0


def _split(risk: float, *, labeller_measured: bool) -> _Risk:
    """Most of the risk goes where a label costs most: to the draw of rejects."""
    if not labeller_measured:
        return _Risk(missed=0.8 * risk, kept=0.2 * risk)
    return _Risk(missed=0.7 * risk, kept=0.1 * risk, labeller=0.1 * risk, chance=0.1 * risk)
