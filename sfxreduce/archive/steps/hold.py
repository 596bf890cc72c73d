"""Holds: place one at any moment, lift it, list them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from sfxreduce.archive.evidence.documents import HoldPaper, LiftPaper, paper_bytes, paper_id
from sfxreduce.archive.evidence.folder import JOURNAL
from sfxreduce.archive.evidence.gather import gather
from sfxreduce.archive.evidence.holds import FoundHolds, HoldShelf, hold_of
from sfxreduce.archive.evidence.subject import Subject, check_text
from sfxreduce.archive.rules.facts import Hold
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.steps.ticket import HELD_BY, revoke_ticket
from sfxreduce.errors import OutputError, SourceError, UsageError

__all__ = ["add_hold", "lift_hold", "list_holds"]


def add_hold(
    subject: Subject,
    *,
    reason: str,
    authority: str,
    until_ns: int | None = None,
    policy: Policy | None = None,
) -> Hold:
    """Place a hold. It is in force once this returns, whatever else is at work on the run.

    A ticket that was written before is put out of force, and revoked if this account may replace
    it.

    Parameters
    ----------
    until_ns : int, optional
        It ends then; else when it is lifted.
    policy : Policy, optional
        Whose authorities and folder of holds count, if the run has no plan.

    Raises
    ------
    ArchiveRefused
        With R11, if the policy does not know the authority.
    OutputError
        If this account may not place a hold there.
    UsageError
        If there is no reason.
    """
    shelf, _ = _look(subject, policy)
    _check_authority(authority, shelf)
    if not reason.strip():
        raise UsageError("hold add: expected a reason; pass --reason TEXT")
    paper = HoldPaper(
        hold_id="-",
        reason=check_text(reason, option="--reason"),
        authority=authority,
        by=subject.by,
        at_ns=subject.clock(),
        until_ns=until_ns,
        run=str(subject.run),
    )
    paper = paper.model_copy(update={"hold_id": paper_id(paper)[:12]})
    shelf.place(paper)
    _tell_journal(subject, paper, shelf)
    return hold_of(paper, hold_id=paper.hold_id, uid=subject.uid)


def _look(subject: Subject, policy: Policy | None) -> tuple[HoldShelf, FoundHolds]:
    """Holds of a run, and where they lie; for a folder of holds nobody has to read the evidence."""
    try:
        found = gather(subject.folder, subject.run, policy=policy)
    except SourceError:
        if policy is None or not policy.holds.holds_root:
            raise
        shelf = HoldShelf(evidence=subject.evidence, runs=(subject.run,), policy=policy)
        return shelf, shelf.found()
    facts = found.facts
    return found.shelf, FoundHolds(holds=facts.holds, problem=facts.holds_problem)


def _tell_journal(subject: Subject, paper: HoldPaper, shelf: HoldShelf) -> None:
    """Write it into the journal too, unless that is in use, broken, ahead, or not for this account
    to write: the hold stands.
    """
    try:
        if shelf.root is not None and not subject.begun:
            return
        with subject.folder.opened(by=subject.by) as writer:
            digest = hashlib.sha256(paper_bytes(paper)).hexdigest()
            writer.append("held", hold_id=paper.hold_id, paper=digest)
            found = gather(subject.folder, subject.run, contents=writer.contents())
            revoke_ticket(writer, found, reason=f"{HELD_BY}{paper.authority}")
    except (OutputError, SourceError, ArchiveRefused):
        return


def lift_hold(
    subject: Subject, hold_id: str, *, authority: str, policy: Policy | None = None
) -> None:
    """Lift a hold: the account that placed it can, or one that the policy names for its authority.

    Raises
    ------
    UsageError
        If there is none of this id.
    ArchiveRefused
        With R11, if another authority or account placed it, and the policy lets only that one lift
        it.
    """
    shelf, found = _look(subject, policy)
    hold = next((h for h in found.holds if h.hold_id == hold_id), None)
    if hold is None:
        known = [h.hold_id for h in found.holds]
        raise UsageError(f"hold lift: expected one of {known}, found '{hold_id}'")
    rules = _check_authority(authority, shelf)
    if rules.holds.lift_by_same and authority != hold.authority:
        remedy = f"ask {hold.authority}"
        detail = f"{hold.authority} placed the hold, {authority} cannot lift it"
        raise ArchiveRefused([refuse("R11", detail, remedy=remedy)])
    if not shelf.may_lift(hold, subject.uid):
        remedy = f"ask {hold.by or 'its owner'}, or whom the policy names as {hold.authority}"
        detail = f"another account placed the hold, {subject.by} cannot lift it"
        raise ArchiveRefused([refuse("R11", detail, remedy=remedy)])
    paper = LiftPaper(hold_id=hold_id, authority=authority, by=subject.by, at_ns=subject.clock())
    shelf.lift(paper)
    if os.access(subject.evidence / JOURNAL, os.W_OK):
        with subject.folder.opened(by=subject.by) as writer:
            writer.append("lifted", hold_id=hold.hold_id, authority=authority)


def list_holds(subject: Subject, *, policy: Policy | None = None) -> Sequence[Hold]:
    """Holds that were not lifted, those that ended by themselves included.

    Parameters
    ----------
    policy : Policy, optional
        Whose folder of holds counts, if the run has no plan.

    Raises
    ------
    ArchiveRefused
        With R09, if it cannot be known.
    """
    _, found = _look(subject, policy)
    if found.problem:
        raise ArchiveRefused([refuse("R09", f"not known: {found.problem}")])
    return found.holds


def _check_authority(authority: str, shelf: HoldShelf) -> Policy:
    """Policy that counts, which knows the authority."""
    policy = shelf.policy
    if authority not in policy.holds.authorities:
        known = ", ".join(policy.holds.authorities)
        detail, remedy = f"{authority!a} may not hold", f"name one of {known}"
        raise ArchiveRefused([refuse("R11", detail, remedy=remedy)])
    return policy
