"""What is promised for a run, and what stands in its way: one value that everything else prints.

A promise is made only if every check had enough to judge by and passed. What could not be checked
has not passed. How the bound follows from the labelled hits: `sfxreduce.decisions.threshold`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sfxreduce.decisions.threshold import Promise, Threshold, at_most

__all__ = ["CHECKS", "Assurance", "Check", "assure"]

CHECKS = ("shape", "conditions", "second_opinion", "window", "range")
"""What is checked, in the order in which it is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One comparison of a run with what its scorer was calibrated on.

    Parameters
    ----------
    ran : bool
        Whether there was enough to judge by.
    n : int
        Events, frames or tiles it rests on.
    value, limit : float or None
        What was measured, and what it may be at most; None if it was not measured.
    alarms : tuple of str
        What differs, by how much, from what limit, and what to do: none if it passed.
    saves : bool
        Whether rejects are searched for peaks where it does not pass: hits may be among them.
    """

    ran: bool = False
    n: int = 0
    value: float | None = None
    limit: float | None = None
    alarms: tuple[str, ...] = ()
    saves: bool = True

    @property
    def passed(self) -> bool:
        """Whether it could judge, and found nothing."""
        return self.ran and not self.alarms

    def to_json(self) -> dict[str, Any]:
        """Return what it found as a JSON object."""
        facts = asdict(self) | {"passed": self.passed}
        return {name: facts[name] for name in ("ran", "passed", "n", "value", "limit")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assurance:
    """What is promised for a run.

    Parameters
    ----------
    reasons : tuple of str
        Why nothing is promised; none if something is.
    loss_upper : float or None
        Largest share of the hits below the threshold, at the confidence of the promise; None
        without a promise.
    checks : mapping of str to Check
        By the names of `CHECKS`.
    """

    promise: Promise = field(default_factory=Promise)
    reasons: tuple[str, ...] = ("nothing was checked",)
    loss_upper: float | None = None
    checks: Mapping[str, Check] = field(default_factory=dict)

    @property
    def promised(self) -> bool:
        """Whether something is promised."""
        return not self.reasons

    @property
    def sentence(self) -> str:
        """The promise, or why there is none, in one sentence."""
        if self.loss_upper is None:
            return f"No promise: {'; '.join(self.reasons)}"
        return (
            f"At most {at_most(self.loss_upper)} of the hits are rejected, with "
            f"{100 * self.promise.confidence:.4g} % confidence, if they are like the calibrated "
            "ones"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "state": "promised" if self.promised else "withheld",
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "max_loss": self.promise.max_loss,
            "confidence": self.promise.confidence,
            "loss_upper": self.loss_upper,
            "checks": {name: self.checks.get(name, Check()).to_json() for name in CHECKS},
        }


def assure(
    claim: Threshold | None,
    checks: Mapping[str, Check],
    *,
    promise: Promise,
    against: tuple[str, ...] = (),
) -> Assurance:
    """Promise what the labelled hits allow, or say why not.

    Parameters
    ----------
    claim : Threshold, optional
        What the threshold is known to lose of labelled hits; none if there are none.
    checks : mapping of str to Check
        By the names of `CHECKS`; what is missing has not run.
    against : tuple of str
        Choices of the user that withhold the promise.

    Examples
    --------
    >>> assure(None, {}, promise=Promise()).to_json()["state"]
    'withheld'
    """
    reasons = list(against)
    if claim is None or not claim.n_hits:
        reasons.append("the threshold does not rest on labelled hits")
    elif not (claim.certified or against):
        reasons.append(claim.shortage)
    if not reasons:
        for name in CHECKS:
            check = checks.get(name, Check())
            reasons += check.alarms
            if not (check.ran or check.alarms):
                reasons.append(f"the check '{name.replace('_', ' ')}' did not run")
    return Assurance(
        promise=promise,
        reasons=tuple(reasons),
        loss_upper=None if reasons or claim is None else claim.loss_upper,
        checks=checks,
    )
