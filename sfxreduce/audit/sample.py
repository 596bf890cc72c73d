"""A random sample of the rejected events, kept in the output beside the hits.

With it, what a run looked like before it was reduced can be told without bias: every kept event
stands for itself, and every sampled one for as many rejects as were drawn from.
"""

from __future__ import annotations

import hmac
import math
from collections.abc import Iterable
from heapq import nsmallest

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import ledger_root
from sfxreduce.errors import UsageError

__all__ = ["AUDIT_SHARE", "audit_order", "check_share", "draw_sample", "mean_of_run"]

AUDIT_SHARE = 0.01
"""Share of the rejected events that stays in an output, unless another is asked for."""


def check_share(share: float) -> None:
    """Refuse what is no share.

    Raises
    ------
    UsageError
        If it is not between 0 and 1.
    """
    if not 0 <= share <= 1:
        raise UsageError(f"expected --audit-share between 0 and 1, found {share}")


def draw_sample(decisions: Decisions, *, share: float, judge: str) -> NDArray[np.int64]:
    """Draw rejected events, each with the same chance; the same run and model draw the same ones.

    The order is that of `sfxreduce.audit.draw.audit_order`, keyed by the run's ledger and by what
    judged it. Unlike an audit's own draw it has no nonce: whoever makes the ledger can foresee it.

    Parameters
    ----------
    share : float
        Of the rejected events; rounded up, so that there is one as soon as anything was rejected.
    judge : str
        Hash of the model, or whatever else tells how the events were judged.

    Returns
    -------
    ndarray of int64
        Positions in the run, ascending.

    Examples
    --------
    >>> from sfxreduce.decisions.decide import decide
    >>> made = decide(np.zeros(300, np.float32), np.zeros(300, np.uint32), threshold=0.5)
    >>> draw_sample(made, share=0.01, judge="model").size
    3
    """
    rejected = np.flatnonzero(decisions.decision == Decision.REJECT)
    drawn = audit_order(
        rejected.tolist(),
        ledger_root=ledger_root(decisions),
        nonce=f"sample {judge}",
        n=math.ceil(round(share * rejected.size, 9)),
    )
    return np.array(sorted(drawn), np.int64)


def mean_of_run(kept: ArrayLike, sampled: ArrayLike, probability: ArrayLike) -> float:
    """Mean of something over all events of a run, from those that are left of it.

    Every event is weighted by one over its chance to be left [1]_: kept events had none to go.

    Parameters
    ----------
    kept : array_like
        The value of every kept event, shape (event,).
    sampled, probability : array_like
        The value of every sampled reject, and its ``probability``, shape (event,) each.

    References
    ----------
    .. [1] D. G. Horvitz and D. J. Thompson, J. Am. Stat. Assoc. 47 (1952) 663.
       doi:10.1080/01621459.1952.10483446

    Examples
    --------
    Of 100 events 20 are kept, and 4 of the 80 others: how many had a pulse above 1 mJ?

    >>> above = mean_of_run([1] * 15 + [0] * 5, [1, 0, 1, 1], [4 / 80] * 4)
    >>> round(above, 3)
    0.75
    """
    ours, theirs = np.asarray(kept, np.float64), np.asarray(sampled, np.float64)
    weight = 1.0 / np.asarray(probability, np.float64)
    return float((ours.sum() + (weight * theirs).sum()) / (ours.size + weight.sum()))


def audit_order(events: Iterable[int], *, ledger_root: str, nonce: str, n: int) -> tuple[int, ...]:
    """First events in the order of the HMAC-SHA256 of their position.

    Parameters
    ----------
    events : iterable of int
        Positions in the source run.
    ledger_root : str
        Of the ledger, in hexadecimal. With the nonce behind it, the key.
    n : int
        Events wanted; all of them, if there are no more.

    Examples
    --------
    >>> audit_order(range(6), ledger_root="00" * 32, nonce="dice", n=4)
    (2, 4, 1, 3)
    """
    key = bytes.fromhex(ledger_root) + nonce.encode()
    return tuple(
        nsmallest(n, events, key=lambda e: hmac.digest(key, e.to_bytes(8, "little"), "sha256"))
    )
