"""Which events an audit looks at, and what their labels come to.

The draw cannot be steered. Events are ordered by a keyed hash of their position [1]_; the key is
the hash of the finished ledger and a *nonce*, a text that nobody involved could choose and that was
not known before the ledger was: dice thrown in a meeting, a public beacon. Another threshold makes
another ledger, hence another order.

References
----------
.. [1] H. Krawczyk, M. Bellare and R. Canetti, HMAC, RFC 2104 (1997). doi:10.17487/RFC2104
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sfxreduce.audit.bound import AuditMethod, Tally
from sfxreduce.audit.labels import EventLabel
from sfxreduce.audit.sample import audit_order
from sfxreduce.decisions.decide import Decision, Decisions
from sfxreduce.decisions.ledger import ledger_root
from sfxreduce.errors import RefusedError, SchemaError, UsageError
from sfxreduce.io.files.safe_read import parse_as
from sfxreduce.run.labels import Label

__all__ = ["Draw", "draw_audit", "draw_from_json", "draw_to_json", "tally"]

DRAW_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Events to label, in the order in which they were drawn.

    Parameters
    ----------
    ledger_root, nonce : str
        What the order follows from.
    rejected, kept : int
        Events of the run that were rejected and kept.
    from_rejected, from_kept : tuple of int
        Positions in the source run of the events drawn from them.
    """

    ledger_root: str
    nonce: str
    method: AuditMethod
    rejected: int
    kept: int
    from_rejected: tuple[int, ...]
    from_kept: tuple[int, ...]


def draw_audit(
    decisions: Decisions,
    *,
    nonce: str,
    rejects: int,
    kept: int,
    method: AuditMethod = AuditMethod.SEQUENTIAL,
) -> Draw:
    """Draw the events to label. More can be drawn later: the first ones stay the same.

    Parameters
    ----------
    decisions : Decisions
        The finished ledger.
    nonce : str
        A text that nobody who made the ledger could choose, and unknown before it was made.
    rejects, kept : int
        Rejected and kept events to draw; all of them, if there are no more.
    method : AuditMethod
        `SEQUENTIAL` allows a look after each label and a stop at will. `FIXED` needs about a sixth
        fewer labels, but all the rejects drawn must be labelled.

    Raises
    ------
    UsageError
        If the nonce is empty.

    Examples
    --------
    >>> from sfxreduce.decisions.decide import decide
    >>> scores = np.linspace(0, 1, 100, dtype=np.float32)
    >>> made = decide(scores, np.zeros(100, np.uint32), threshold=0.9)
    >>> draw_audit(made, nonce="4 2 6 1", rejects=3, kept=2).from_rejected
    (73, 36, 1)
    """
    if not nonce.strip():
        raise UsageError(
            "audit: expected a nonce that nobody could choose, found none; throw dice or take a "
            "public beacon's value, and pass --nonce"
        )
    root = ledger_root(decisions)
    rejected = np.flatnonzero(decisions.decision == Decision.REJECT)
    return Draw(
        ledger_root=root,
        nonce=nonce,
        method=method,
        rejected=rejected.size,
        kept=decisions.kept.size,
        from_rejected=audit_order(rejected.tolist(), ledger_root=root, nonce=nonce, n=rejects),
        from_kept=audit_order(decisions.kept.tolist(), ledger_root=root, nonce=nonce, n=kept),
    )


def tally(draw: Draw, labels: Sequence[EventLabel], *, known: tuple[int, int] = (0, 0)) -> Tally:
    """Count the labels of the events drawn.

    An event left open counts against the run: as a hit where it was rejected, as none where it was
    kept.

    Parameters
    ----------
    labels : sequence of EventLabel
        Of the events drawn; others do not count.
    known : tuple of int
        Known hits shown to the labeller, and how many of them it called hits.

    Raises
    ------
    RefusedError
        If labels are missing that could have been left out by choice.
    """
    label = {e.source_index: e.label for e in labels}
    given = [label[event] for event in draw.from_rejected if event in label]
    audited = len(given)
    in_order = all(event in label for event in draw.from_rejected[:audited])
    if not in_order or (draw.method is AuditMethod.FIXED and audited < len(draw.from_rejected)):
        first = next(e for e in draw.from_rejected if e not in label)
        raise RefusedError(
            f"audit: the rejected event {first} has no label, but "
            f"{'all drawn must have one' if in_order else 'events drawn after it have one'}; "
            "label it, or mark it as maybe"
        )
    unlabelled = [event for event in draw.from_kept if event not in label]
    if unlabelled:
        raise RefusedError(
            f"audit: {len(unlabelled)} of {len(draw.from_kept)} kept events drawn have no label, "
            f"event {unlabelled[0]} among them; label them all, or mark them as maybe"
        )
    return Tally(
        rejected=draw.rejected,
        kept=draw.kept,
        audited=audited,
        found_at=tuple(n for n, value in enumerate(given, start=1) if value != Label.MISS),
        kept_audited=len(draw.from_kept),
        kept_hits=sum(label[event] == Label.HIT for event in draw.from_kept),
        seeded=known[0],
        recognised=known[1],
    )


def draw_to_json(draw: Draw) -> dict[str, Any]:
    """Draw as a JSON object, to be labelled elsewhere or later."""
    return {"draw_version": DRAW_VERSION, **asdict(draw)}


def draw_from_json(facts: Mapping[str, Any], *, where: str) -> Draw:
    """Draw from JSON. Whether it is the draw of a ledger shows when it is counted.

    Raises
    ------
    SchemaError
        If it is not a draw, or of another version.
    """
    try:
        body = dict(facts)
        if body.pop("draw_version") != DRAW_VERSION:
            raise SchemaError(f"{where}: the draw is of another version of sfxreduce; draw again")
        return parse_as(Draw, body)
    except (KeyError, TypeError, ValueError) as error:
        raise SchemaError(
            f"{where}: expected what 'sfxreduce audit draw' writes, found something else ({error})"
        ) from error
