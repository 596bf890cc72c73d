"""The release ticket of a run: what it would rest on if written now, and how it is revoked."""

from __future__ import annotations

from dataclasses import replace

from sfxreduce.archive.evidence.documents import TicketPaper, paper_bytes, read_paper
from sfxreduce.archive.evidence.folder import EvidenceWriter
from sfxreduce.archive.evidence.gather import Gathered
from sfxreduce.archive.rules.facts import Evidence, Verified

__all__ = ["HELD", "HELD_BY", "TICKET", "renewed", "revoke_ticket"]

TICKET = "release-ticket.json"
REVOKED, HELD_BY = "Revoked: ", "held by "
HELD = REVOKED + HELD_BY
"""How the first sentence of a ticket begins that a hold put out of force."""


def renewed(facts: Evidence, now_ns: int) -> Evidence:
    """Facts as they would be if all that is looked at anew for a ticket were found good."""
    verified, receipts = facts.verified, facts.receipts
    if verified is not None and verified.ok:
        verified = Verified(ok=True, at_ns=now_ns)
    if receipts is not None:
        receipts = replace(receipts, oldest_ns=now_ns)
    return replace(facts, verified=verified, receipts=receipts)


def revoke_ticket(writer: EvidenceWriter, found: Gathered, *, reason: str) -> None:
    """Put a ticket that lists nothing in the place of one that was written.

    Raises
    ------
    OutputError
        If another account wrote it, and only that one may replace it.
    """
    data = found.contents.paper(TICKET)
    if data is None:
        return
    ticket = read_paper(TicketPaper, data, where=TICKET)
    empty = ticket.model_copy(
        update={
            "files": (),
            "bytes": 0,
            "packages": (),
            "valid_until_ns": 0,
            "why": (f"{REVOKED}{reason}",),
        }
    )
    writer.write(TICKET, paper_bytes(empty))
