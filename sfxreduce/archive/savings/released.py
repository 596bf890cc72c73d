"""What left the disk by a ticket, what may, and the hits that may have been lost for it."""

from __future__ import annotations

import os
from pathlib import Path

from sfxreduce.archive.evidence.documents import PlanPaper, TicketPaper, read_paper
from sfxreduce.archive.evidence.folder import PAPER_BYTES
from sfxreduce.archive.evidence.inspect import certificate_facts
from sfxreduce.archive.evidence.pins import pinned_place
from sfxreduce.archive.rules.facts import SourcePin
from sfxreduce.archive.rules.policy import Disposition
from sfxreduce.archive.rules.states import PATH, State
from sfxreduce.archive.savings.disk import Weighed
from sfxreduce.archive.savings.run_case import RunCase
from sfxreduce.archive.savings.values import Freed, LostHits
from sfxreduce.archive.steps.ticket import TICKET
from sfxreduce.archive.tape.backends import open_backend
from sfxreduce.archive.tape.backends.posix import PosixBackend
from sfxreduce.audit.bound import conclude
from sfxreduce.errors import SfxReduceError
from sfxreduce.io.files.safe_read import read_small

__all__ = ["freed_bytes", "lost_hits", "pool_folders"]

CONFIDENCE = 0.95
CERTIFICATE = "certificate.json"


def pool_folders(case: RunCase) -> dict[str, Path | None]:
    """Folder of each copy in an archive; None for an archive that is no folder, or not there."""
    line = case.found.contents.last("archive") if case.found else None
    if line is None or case.plan is None:
        return {}
    found: dict[str, Path | None] = {}
    for pool, spec in dict(line["copies"]).items():
        found[pool] = None
        try:
            backend = open_backend(spec)
        except SfxReduceError as error:
            case.notes.append(f"its copy in the pool '{pool}' cannot be looked at: {error}")
            continue
        if isinstance(backend, PosixBackend):
            found[pool] = backend.root / pool / case.plan.prefix
    return found


def freed_bytes(case: RunCase, weighed: Weighed, *, tape: int, now_ns: int) -> Freed:
    """Sum up what left the disk, and what may.

    Parameters
    ----------
    weighed : Weighed
        All files that were found anywhere: what was only moved is not gone.
    tape : int
        Bytes of its copies that were walked.
    now_ns : int
        Nanoseconds since 1970: a ticket that ran out has to be asked for again.
    """
    if case.found is None or case.status is None or not case.sound:
        return Freed(tape=tape)
    unwalked = _unwalked(case)
    potential = _potential(case)
    ticket = _ticket(case)
    named = case.status.ready or (ticket is not None and ticket.valid_until_ns >= now_ns)
    return Freed(
        realised=_realised(case, ticket, weighed) if ticket else 0,
        potential=potential,
        ready=potential if named else 0,
        tape=tape + unwalked,
        tape_to_come=_tape_to_come(case.plan, tape + unwalked) if case.plan and potential else 0,
        unwalked=unwalked,
    )


def _ticket(case: RunCase) -> TicketPaper | None:
    """The release ticket that counts; one that was revoked lists nothing."""
    data = case.found.contents.paper(TICKET) if case.found else None
    return None if data is None else read_paper(TicketPaper, data, where=TICKET)


def _realised(case: RunCase, ticket: TicketPaper, weighed: Weighed) -> int:
    """Bytes that a ticket named and that are gone: neither there, nor elsewhere by another name."""
    names = {file.path for file in ticket.files}
    return sum(
        file.size
        for file in ticket.files
        if not os.path.lexists(pinned_place(case.target.run, file.path, names=names))
        and not weighed.holds(inode=file.inode, size=file.size)
    )


def _potential(case: RunCase) -> int:
    """Bytes still on the disk that a ticket could name, and a note if that is none."""
    plan, status = case.plan, case.status
    if plan is None or status is None or case.found is None:
        case.notes.append("no plan: nothing of it may leave the disk")
        return 0
    if plan.policy.release.disposition is Disposition.KEEP:
        why = "the policy keeps it on the disk"
    elif status.held:
        why = "held: nothing of it may leave the disk"
    elif status.state not in PATH:
        why = f"{status.state}: it has to be planned again before anything may leave the disk"
    elif case.found.facts.source not in (SourcePin.SAME, SourcePin.GONE):
        why = "the run changed after it was planned: nothing of it may leave the disk"
    else:
        names = {file.path for file in plan.sources}
        return sum(
            file.size
            for file in plan.sources
            if os.path.lexists(pinned_place(case.target.run, file.path, names=names))
        )
    case.notes.append(why)
    return 0


def _unwalked(case: RunCase) -> int:
    """Bytes of copies that only receipts tell of."""
    plan, status = case.plan, case.status
    if plan is None or status is None or State.ARCHIVED not in status.history:
        return 0
    hidden = [folder for folder in pool_folders(case).values() if folder is None]
    return len(hidden) * plan.archive_bytes


def _tape_to_come(plan: PlanPaper, there: int) -> int:
    """Bytes that still have to go to tape for the plan."""
    return max(plan.archive_bytes * plan.policy.release.copies - there, 0)


def lost_hits(case: RunCase) -> LostHits:
    """Bound the hits among the rejected events by the certificate of the output, at 95 %."""
    if case.output is None:
        return LostHits()
    if case.manifest is None:
        return LostHits(told="not known: the output cannot be read")
    rejected = case.manifest.rejected
    data = _certificate(case)
    if data is None:
        told = f"not known: no certificate; any of the {rejected:,} rejected events may be a hit"
        return LostHits(rejected=rejected, told=told if rejected else "no event was rejected")
    facts, certificate = certificate_facts(data, hits=case.output, at_ns=0)
    if certificate is None or not facts.fits:
        return LostHits(rejected=rejected, told="not known: the certificate is not of this output")
    # What was certified at another confidence is concluded from the same counts once more.
    found = conclude(certificate.counted, method=certificate.method, confidence=CONFIDENCE)
    return LostHits(
        rejected=rejected,
        missed_upper=found.missed_upper,
        loss_upper=found.loss_upper,
        told=f"certificate: {certificate.counted.audited:,} rejected events were audited, "
        f"{certificate.counted.found:,} were hits",
    )


def _certificate(case: RunCase) -> bytes | None:
    """The certificate that was taken up, or one that was laid there for the next plan."""
    if case.sound and case.found is not None:
        data = case.found.contents.paper(CERTIFICATE)
        if data is not None:
            return data
    try:
        return read_small(case.target.evidence / CERTIFICATE, most_bytes=PAPER_BYTES)
    except OSError:
        return None
