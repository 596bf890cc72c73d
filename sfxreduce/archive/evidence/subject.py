"""One run that is dealt with: where it lies, where its evidence lies, who acts and when."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sfxreduce.archive.evidence.advance import advance, check_sound, missing
from sfxreduce.archive.evidence.documents import PlanPaper
from sfxreduce.archive.evidence.folder import (
    Clock,
    EvidenceFolder,
    EvidenceWriter,
    evidence_path,
)
from sfxreduce.archive.evidence.gather import Gathered, gather
from sfxreduce.archive.evidence.tickets import TicketBook
from sfxreduce.archive.rules.facts import Evidence
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.rules.states import State
from sfxreduce.errors import SchemaError, UsageError

__all__ = ["Subject", "check_text", "wall_clock"]

TOKEN_LENGTH = 8


def wall_clock() -> int:
    """Time of this machine, in nanoseconds since 1970."""
    return time.time_ns()


def check_text(text: str, *, option: str) -> str:
    """Refuse a text that papers cannot hold.

    Raises
    ------
    SchemaError
        If it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SchemaError(
            f"{option} {text[:200]!a}: expected UTF-8, found other bytes; rename it first"
        ) from error
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One run that is dealt with.

    Parameters
    ----------
    run : Path
        Absolute.
    evidence : Path
        Folder of its evidence, never inside the run.
    by : str
        Name of who acts; people are told apart by their accounts.
    clock : callable
        Gives the time.
    root : Path, optional
        Folder below which tickets count for the daily limit; see
        `sfxreduce.archive.evidence.tickets.limit_roots`.

    Raises
    ------
    UsageError
        If evidence and run overlap, or nobody acts.
    SchemaError
        If a path or the name is not UTF-8.
    """

    run: Path
    evidence: Path
    by: str
    clock: Clock = field(default=wall_clock)
    root: Path | None = None

    def __post_init__(self) -> None:
        run, evidence = self.run.resolve(), self.evidence.resolve()
        if run == evidence or run in evidence.parents or evidence in run.parents:
            raise UsageError(
                f"{self.evidence}: overlaps the run {self.run}; choose another --evidence"
            )
        if not self.by.strip() or len(self.by) > 200:
            raise UsageError("archive: expected the name of who acts; pass --as NAME")
        for option, text in (
            ("run", str(self.run)),
            ("--evidence", str(self.evidence)),
            ("--as", self.by),
        ):
            check_text(text, option=option)

    @classmethod
    def of(
        cls,
        run: Path,
        *,
        by: str,
        evidence: Path | None = None,
        clock: Clock = wall_clock,
        root: Path | None = None,
    ) -> Subject:
        """Subject of a path as it was given."""
        whole = run.absolute()
        where = evidence_path(whole, evidence)
        return cls(run=whole, evidence=where, by=by, clock=clock, root=root)

    @property
    def uid(self) -> int:
        """Account that acts."""
        return os.geteuid()

    @property
    def folder(self) -> EvidenceFolder:
        """Its evidence."""
        return EvidenceFolder(path=self.evidence, clock=self.clock)

    @property
    def begun(self) -> bool:
        """Whether there is any evidence."""
        return self.folder.has_journal()

    @contextmanager
    def opened(
        self,
        *,
        rehash: bool = False,
        create: bool = False,
        book: TicketBook | None = None,
        gid: int | None = None,
    ) -> Iterator[tuple[EvidenceWriter, Gathered]]:
        """Open the evidence to add to it, and take down the facts; unsound ones are refused.

        Parameters
        ----------
        gid : int, optional
            Group to share it with.

        Raises
        ------
        ArchiveRefused
            With R11, if there is no evidence and none is to be begun.
        """
        if not create and not self.begun:
            remedy = "run 'sfxreduce archive plan'"
            raise ArchiveRefused([refuse("R11", f"{self.run}: there is no plan", remedy=remedy)])
        with self.folder.opened(by=self.by, gid=gid) as writer:
            yield writer, self.look(writer, rehash=rehash, book=book)

    def look(
        self,
        writer: EvidenceWriter | None = None,
        *,
        rehash: bool = False,
        book: TicketBook | None = None,
    ) -> Gathered:
        """Take down the facts as they are now.

        Raises
        ------
        ArchiveRefused
            If they are not to be trusted.
        """
        contents = writer.contents() if writer else None
        found = gather(
            self.folder, self.run, rehash=rehash, contents=contents, root=self.root, book=book
        )
        check_sound(found.facts, policy=found.policy, now_ns=self.clock())
        return found

    def require(
        self,
        found: Gathered,
        until: State,
        *,
        state: State | None = None,
        facts: Evidence | None = None,
    ) -> None:
        """Refuse unless the run can go as far as some state, from another one or by other facts.

        Raises
        ------
        ArchiveRefused
        """
        refusals = missing(
            state or found.contents.state,
            facts or found.facts,
            policy=found.policy,
            now_ns=self.clock(),
            until=until,
        )
        if refusals:
            raise ArchiveRefused(refusals)

    def advance(
        self,
        writer: EvidenceWriter,
        until: State,
        *,
        policy: Policy | None = None,
        rehash: bool = False,
    ) -> None:
        """Take down the facts anew and go as far as some state, by the plan's policy or another.

        Raises
        ------
        ArchiveRefused
            See `sfxreduce.archive.evidence.advance.advance`.
        """
        found, now_ns = self.look(writer, rehash=rehash), self.clock()
        advance(writer, found, policy=policy or found.policy, now_ns=now_ns, until=until)

    def planned(self, found: Gathered, *, token: str = "") -> PlanPaper:
        """Return the plan of a run, and compare its run, and its id with what was typed.

        Raises
        ------
        ArchiveRefused
            With R11, if there is none or it is another one.
        """
        if found.plan is None:
            remedy = "run 'sfxreduce archive plan'"
            raise ArchiveRefused([refuse("R11", f"{self.run}: there is no plan", remedy=remedy)])
        if token and (
            len(token) < TOKEN_LENGTH or not found.plan.plan_id.startswith(token.lower())
        ):
            detail = f"'{token}' is not the plan of this run"
            remedy = f"type the first {TOKEN_LENGTH} letters of the plan's id, or more"
            raise ArchiveRefused([refuse("R11", detail, remedy=remedy)])
        if Path(found.plan.run).resolve() != self.run.resolve():
            detail = f"the plan is about {found.plan.run}, not {self.run}"
            raise ArchiveRefused([refuse("R03", detail)])
        return found.plan

    def check_policy(self, plan: PlanPaper, policy: Policy | None) -> None:
        """Refuse another policy than the plan was made under.

        Raises
        ------
        ArchiveRefused
            With R11.
        """
        if policy is not None and policy != plan.policy:
            detail = f"it is '{plan.policy.name}'"
            remedy = "plan again under the other policy"
            raise ArchiveRefused(
                [refuse("R11", f"the plan was made under another policy: {detail}", remedy=remedy)]
            )
