"""Check a release ticket before anybody acts on it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sfxreduce.archive.evidence.documents import TicketPaper, read_paper
from sfxreduce.archive.evidence.folder import JOURNAL, PAPER_BYTES, Clock, EvidenceFolder
from sfxreduce.archive.evidence.gather import gather
from sfxreduce.archive.evidence.holds import HoldShelf
from sfxreduce.archive.evidence.pins import compare_pins
from sfxreduce.archive.evidence.signing import SIGNATURE_SUFFIX, is_signed
from sfxreduce.archive.evidence.subject import wall_clock
from sfxreduce.archive.rules import checks
from sfxreduce.archive.rules.facts import Evidence, SourcePin
from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal, refuse
from sfxreduce.archive.steps.ticket import TICKET
from sfxreduce.errors import RunNotFound
from sfxreduce.io.files.safe_read import read_small

__all__ = ["check_ticket"]

SIGNATURE_BYTES = 64


def check_ticket(ticket: Path, *, key: Path, clock: Clock = wall_clock) -> TicketPaper:
    """Say whether a site may act on a ticket now; nothing is written.

    The signature beside the ticket has to be that of the key. The ticket must be in force, and what
    is left of its files has to be as it was pinned by size, time of change and inode. Where the
    ticket lies in the evidence it was written to, it has to be the one that counts there, and
    nothing may be tampered with. No hold may stand there, nor in the folder of holds that the
    ticket names.

    Parameters
    ----------
    key : Path
        Public Ed25519 key in PEM.

    Returns
    -------
    TicketPaper
        What may leave the disk.

    Raises
    ------
    ArchiveRefused
        If it may not be acted on: R03, R04, R09, R10, R11, R16, R17 or R21.
    RunNotFound
        If there is no such ticket or key.
    """
    try:
        data = read_small(ticket, most_bytes=PAPER_BYTES)
    except OSError as error:
        raise RunNotFound(f"{ticket}: cannot be read ({error.strerror or error})") from error
    paper = read_paper(TicketPaper, data, where=str(ticket))
    # What was revoked says so, and its old signature need not be puzzled over.
    found = [*_revoked(paper)] or [
        *_signature(ticket, data, key),
        *_in_time(paper, clock()),
        *_files(paper),
        *_holds(ticket, paper, clock()),
        *_evidence(ticket, data, paper, clock),
    ]
    if found:
        raise ArchiveRefused(list(dict.fromkeys(found)))
    return paper


def _revoked(paper: TicketPaper) -> Iterator[Refusal]:
    if not paper.files:
        yield refuse("R21", paper.why[0] if paper.why else "it lists nothing")


def _signature(ticket: Path, data: bytes, key: Path) -> Iterator[Refusal]:
    remedy = "do nothing; ask who wrote the ticket, and for which key"
    place = ticket.with_name(ticket.name + SIGNATURE_SUFFIX)
    try:
        signature = read_small(place, most_bytes=SIGNATURE_BYTES)
    except OSError:
        yield refuse("R10", f"there is no signature {place}", remedy=remedy)
        return
    if not is_signed(data, signature, key=key):
        detail = f"{ticket} is not what was signed, or not by the key {key}"
        yield refuse("R10", detail, remedy=remedy)


def _in_time(paper: TicketPaper, now_ns: int) -> Iterator[Refusal]:
    if now_ns >= paper.valid_until_ns:
        # A ticket that nobody vouches for may name a number that no float can hold.
        hours = (now_ns - max(paper.valid_until_ns, 0)) / 3600e9
        detail = f"the ticket ended {hours:.1f} hours ago"
        yield refuse("R04", detail, remedy="run 'sfxreduce archive release' again")
    if now_ns < paper.written_at_ns:
        yield refuse("R17", "the ticket is of the future")


def _files(paper: TicketPaper) -> Iterator[Refusal]:
    """A run that is gone in part is what the ticket is for."""
    found = compare_pins(Path(paper.run), paper.files, rehash=False)
    if found not in (SourcePin.SAME, SourcePin.GONE):
        yield refuse("R03", f"{paper.run} is {found}")


def _holds(ticket: Path, paper: TicketPaper, now_ns: int) -> Iterator[Refusal]:
    """What stands in the policy's folder of holds, wherever the ticket itself lies."""
    if paper.policy is None:
        return
    shelf = HoldShelf(evidence=ticket.parent, runs=(Path(paper.run),), policy=paper.policy)
    found = shelf.found()
    facts = Evidence(holds=found.holds, holds_problem=found.problem)
    yield from checks.held(checks.Case(facts=facts, policy=shelf.policy, now_ns=now_ns))


def _evidence(ticket: Path, data: bytes, paper: TicketPaper, clock: Clock) -> Iterator[Refusal]:
    """A hold that was placed while the journal was in use leaves the ticket as it was."""
    # Evidence whose journal was taken away is evidence all the same.
    if not any(os.path.lexists(ticket.parent / name) for name in (JOURNAL, "holds")):
        return
    found = gather(EvidenceFolder(path=ticket.parent, clock=clock), Path(paper.run))
    case = checks.Case(facts=found.facts, policy=found.policy, now_ns=clock())
    yield from checks.sound(case)
    yield from checks.held(case)
    yield from checks.ticketed(case)
    if found.contents.paper(TICKET) != data:
        detail = f"{ticket} is not the ticket that counts, which is {ticket.with_name(TICKET)}"
        yield refuse("R10", detail, remedy="delete nothing by it")
