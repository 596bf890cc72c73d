"""What the tickets of the last 24 hours let go, of all runs that share a daily limit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.archive.evidence.documents import TicketPaper, read_paper
from sfxreduce.archive.evidence.find import DEPTH, evidence_below
from sfxreduce.archive.evidence.folder import PAPER_BYTES
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused
from sfxreduce.errors import RunNotFound
from sfxreduce.io.files.journal import alone
from sfxreduce.io.files.safe_read import read_small

__all__ = ["Counted", "TicketBook", "limit_roots", "one_ticket_at_a_time"]

DAY_NS = 86_400 * 10**9
LOCK = ".release-tickets.lock"

Roots = Mapping[Path, int]
"""Folders below which tickets are counted, and how many levels of folders are looked into."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What other tickets let go.

    Parameters
    ----------
    problem : str
        Why it cannot be known; empty if it is.
    """

    bytes: int
    problem: str = ""


def limit_roots(policy: Policy | None, *, root: Path | None, evidence: Path) -> Roots:
    """Where the tickets lie that count for a run: below all folders that were named.

    Parameters
    ----------
    root : Path, optional
        That the user named.
    evidence : Path
        Of the run. If no folder was named, tickets in the folders beside it count.
    """
    named = [Path(policy.release.limit_root)] if policy and policy.release.limit_root else []
    named += [root] if root is not None else []
    return dict.fromkeys(named, DEPTH) or {evidence.parent: 1}


class TicketBook:
    """Counts tickets, below each folder once."""

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._found: dict[tuple[Path, int], dict[Path, Counted]] = {}

    def others(self, roots: Roots, own: Path) -> Counted:
        """Sum up what tickets of other runs let go.

        A run whose evidence is not among those that are counted is no exception to the limit: the
        tickets of runs beside it would not be counted either.

        Parameters
        ----------
        roots : mapping of Path to int
            See `limit_roots`.
        own : Path
            Evidence of the run that asks.
        """
        tickets: dict[Path, Counted] = {}
        for root, depth in roots.items():
            try:
                found = self._below(root, depth)
            except (OSError, RunNotFound) as error:
                return Counted(bytes=0, problem=f"{root} cannot be looked through: {error}")
            if own.resolve() not in found:
                return Counted(bytes=0, problem=f"{own} is not found below {root}")
            tickets |= found
        tickets.pop(own.resolve(), None)
        problems = [counted.problem for counted in tickets.values() if counted.problem]
        total = sum(counted.bytes for counted in tickets.values())
        return Counted(bytes=total, problem=problems[0] if problems else "")

    def _below(self, root: Path, depth: int) -> dict[Path, Counted]:
        key = (root.resolve(), depth)
        if key not in self._found:
            self._found[key] = {
                path.resolve(): self._count(path) for path in evidence_below(root, depth=depth)
            }
        return self._found[key]

    def _count(self, evidence: Path) -> Counted:
        """What the ticket of one run lets go; one that cannot be read may let go of anything."""
        file = evidence / "release-ticket.json"
        try:
            if not os.path.lexists(file):
                return Counted(bytes=0)
            data = read_small(file, most_bytes=PAPER_BYTES)
            ticket = read_paper(TicketPaper, data, where=str(file))
        except (ArchiveRefused, OSError) as error:
            return Counted(bytes=0, problem=f"{file} cannot be read: {error}")
        late = ticket.written_at_ns > self._now_ns - DAY_NS
        return Counted(bytes=ticket.bytes if late else 0)


@contextmanager
def one_ticket_at_a_time(roots: Roots) -> Iterator[None]:
    """Let nobody else write a ticket that counts below the same folders.

    Raises
    ------
    OutputError
        If somebody does so now, or a folder cannot be written.
    """
    with ExitStack() as held:
        for root in sorted({root.resolve() for root in roots}):
            # Of whatever account: whoever writes tickets below has to be able to hold it.
            held.enter_context(alone(root / LOCK, mode=0o666))
        yield
