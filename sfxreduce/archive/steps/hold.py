"""Holds: place one at any moment, lift it, list them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from sfxreduce.archive.evidence.documents import HoldPaper, paper_bytes, paper_id
from sfxreduce.archive.evidence.gather import Gathered, gather, hold_of
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.rules.facts import Hold
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.steps.release import revoke_ticket
from sfxreduce.errors import OutputError, UsageError
from sfxreduce.io.files.durable import output_errors, sync_folder, write_file

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

    A ticket that was written before is put out of force.

    Parameters
    ----------
    until_ns : int, optional
        It ends then; else when it is lifted.
    policy : Policy, optional
        Whose authorities count, if the run has no plan.

    Raises
    ------
    ArchiveRefused
        With R11, if the policy does not know the authority.
    UsageError
        If there is no reason.
    """
    found = gather(subject.folder, subject.run)
    _check_authority(authority, found, policy)
    if not reason.strip():
        raise UsageError("hold add: expected a reason; pass --reason TEXT")
    paper = HoldPaper(
        hold_id="-",
        reason=reason,
        authority=authority,
        by=subject.by,
        at_ns=subject.clock(),
        until_ns=until_ns,
    )
    paper = paper.model_copy(update={"hold_id": paper_id(paper)[:12]})
    place = subject.evidence / "holds" / f"{paper.hold_id}.json"
    with output_errors(place):
        subject.evidence.mkdir(exist_ok=True)
        write_file(place, paper_bytes(paper), below=subject.evidence)
        sync_folder(place.parent)
    _tell_journal(subject, paper)
    return hold_of(paper, hold_id=paper.hold_id)


def _tell_journal(subject: Subject, paper: HoldPaper) -> None:
    """Write it into the journal too, unless that is in use, broken or ahead: the hold stands."""
    try:
        with subject.folder.opened(by=subject.by) as writer:
            digest = hashlib.sha256(paper_bytes(paper)).hexdigest()
            writer.append("held", hold_id=paper.hold_id, paper=digest)
            found = gather(subject.folder, subject.run, contents=writer.contents())
            revoke_ticket(writer, found, reason=f"held by {paper.authority}")
    except (OutputError, ArchiveRefused):
        return


def lift_hold(
    subject: Subject, hold_id: str, *, authority: str, policy: Policy | None = None
) -> None:
    """Lift a hold.

    Raises
    ------
    UsageError
        If there is none of this id.
    ArchiveRefused
        With R11, if another authority placed it, and the policy lets only that one lift it.
    """
    with subject.folder.opened(by=subject.by) as writer:
        found = gather(subject.folder, subject.run, contents=writer.contents())
        hold = next((h for h in found.facts.holds if h.hold_id == hold_id), None)
        if hold is None:
            known = [h.hold_id for h in found.facts.holds]
            raise UsageError(f"hold lift: expected one of {known}, found '{hold_id}'")
        rules = _check_authority(authority, found, policy)
        if rules.holds.lift_by_same and authority != hold.authority:
            remedy = f"ask {hold.authority}"
            detail = f"{hold.authority} placed the hold, {authority} cannot lift it"
            raise ArchiveRefused([refuse("R11", detail, remedy=remedy)])
        writer.append("lifted", hold_id=hold.hold_id, authority=authority)


def list_holds(subject: Subject) -> Sequence[Hold]:
    """Holds that were not lifted, those that ended by themselves included."""
    return gather(subject.folder, subject.run).facts.holds


def _check_authority(authority: str, found: Gathered, given: Policy | None) -> Policy:
    """Policy that counts, which is the plan's if there is one, and knows the authority."""
    policy = given if given and found.plan is None else found.policy
    if authority not in policy.holds.authorities:
        known = ", ".join(policy.holds.authorities)
        remedy = f"name one of {known}"
        raise ArchiveRefused([refuse("R11", f"'{authority}' may not hold", remedy=remedy)])
    return policy
