"""Bring a plan's files into the archive, and stage some of them back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sfxreduce.archive.evidence.advance import go_on
from sfxreduce.archive.evidence.documents import PinnedFile, PlanPaper, RecallPaper, paper_bytes
from sfxreduce.archive.evidence.folder import EvidenceWriter
from sfxreduce.archive.evidence.holds import HoldShelf
from sfxreduce.archive.evidence.pins import compare_pins
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.evidence.workfolder import work_folder
from sfxreduce.archive.rules.facts import SourcePin
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.rules.states import State
from sfxreduce.archive.steps.copies import Copies, copies_of, open_copies, take_down
from sfxreduce.archive.steps.packing import Tars
from sfxreduce.archive.tape.backends import Backend
from sfxreduce.archive.tape.recall import RecallResult, check_recall, recall_test
from sfxreduce.archive.tape.receipts import Receipt

__all__ = ["Executed", "check_holds", "execute_run", "recall_run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Executed:
    """What was done, or would be done.

    Parameters
    ----------
    copies : mapping of str to str
        Archive of each pool.
    state : State
        That the run is in now.
    """

    plan: PlanPaper
    dry_run: bool
    copies: dict[str, str]
    state: State

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "dry_run": self.dry_run,
            "plan_id": self.plan.plan_id,
            "state": str(self.state),
            "files": len(self.plan.payload),
            "bytes": sum(file.size for file in self.plan.payload),
            "packages": len(self.plan.packages),
            "parcels": len(self.plan.parcels),
            "copies": self.copies,
            **({"caution": self.plan.policy.caution} if self.plan.policy.caution else {}),
        }


def execute_run(
    subject: Subject,
    *,
    to: Sequence[str] = (),
    token: str | None = None,
    policy: Policy | None = None,
) -> Executed:
    """Put every package and file of a plan into every pool, and record the receipts.

    What was cut off is begun again with the same call: what is there is not copied twice. The facts
    and the holds are looked at before every copy. A package is made beside the evidence, put into
    all pools, and removed.

    Parameters
    ----------
    to : sequence of str
        See `sfxreduce.archive.steps.copies.copies_of`.
    token : str, optional
        Beginning of the plan's id; without it nothing is done, and what would be done is told.
    policy : Policy, optional
        The caller's own, which names the archives if `to` does not; the plan has to be under it.

    Raises
    ------
    ArchiveRefused
        If a condition is missing, or what the archive says is not enough.
    ArchiveError
        If the archive does not answer.
    """
    if token is None:
        return _would_execute(subject, to, policy)
    with subject.opened(rehash=True) as (writer, found):
        plan = subject.planned(found, token=token)
        subject.check_policy(plan, policy)
        copies = copies_of(to, policy=policy)
        opened = _opened_for(plan, copies)
        until, now_ns = State.ARCHIVING, subject.clock()
        go_on(writer, found, policy=plan.policy, now_ns=now_ns, until=until)
        writer.append("archive", plan_id=plan.plan_id, copies=copies)
        _put_all(subject, writer, plan, opened, found.shelf)
        subject.advance(writer, State.ARCHIVED)
        return Executed(plan=plan, dry_run=False, copies=copies, state=writer.contents().state)


def _would_execute(subject: Subject, to: Sequence[str], policy: Policy | None) -> Executed:
    found = subject.look()
    plan = subject.planned(found)
    subject.check_policy(plan, policy)
    copies = copies_of(to, policy=policy)
    _opened_for(plan, copies)  # refused now, not when it is done
    subject.require(found, State.ARCHIVING)
    return Executed(plan=plan, dry_run=True, copies=copies, state=found.contents.state)


def _opened_for(plan: PlanPaper, copies: Mapping[str, str]) -> Copies:
    """Open the archive of every copy; too few of them are refused before anything is copied.

    A folder holds one copy. How many a script makes of a file, its receipts say.
    """
    opened, release = open_copies(copies), plan.policy.release
    one_each = all(spec.startswith("posix:") for spec in copies.values())
    if one_each and len(copies) < release.copies:
        raise ArchiveRefused([refuse("R07", f"expected {release.copies}, found {len(copies)}")])
    return opened


def _put_all(
    subject: Subject, writer: EvidenceWriter, plan: PlanPaper, copies: Copies, shelf: HoldShelf
) -> None:
    began_ns = subject.clock()
    pins = {file.path: file for file in plan.sources}

    def check(paths: Sequence[str]) -> None:
        for path in paths:
            if path.startswith("raw/"):
                _check_pin(plan, pins[path.removeprefix("raw/")])

    with Tars.opened(plan, evidence=subject.evidence) as tars:

        def put(backend: Backend, pool: str, parcel: str) -> Receipt:
            check_holds(shelf, now_ns=subject.clock())
            local = tars.local(parcel, check=check)
            return backend.put(local, plan.prefix + parcel, pool=pool)

        take_down(writer, plan, copies, ask=put, action="put", began_ns=began_ns)


def _check_pin(plan: PlanPaper, pin: PinnedFile) -> None:
    """Refuse a file that somebody touched since everything was compared."""
    whole = plan.local(f"raw/{pin.path}")
    moved = pin.model_copy(update={"path": whole.name})
    if compare_pins(whole, [moved], rehash=False) is not SourcePin.SAME:
        raise ArchiveRefused([refuse("R03", pin.path)])


def check_holds(shelf: HoldShelf, *, now_ns: int) -> None:
    """Refuse if a hold was placed meanwhile, or it cannot be known.

    Raises
    ------
    ArchiveRefused
        With R09.
    """
    found = shelf.found()
    why = [f"{hold.authority}: {hold.reason}" for hold in found.holds if hold.stands(now_ns)]
    if why or found.problem:
        raise ArchiveRefused([refuse("R09", text) for text in why or [found.problem]])


def recall_run(
    subject: Subject,
    *,
    n: int | None = None,
    to: Sequence[str] = (),
    policy: Policy | None = None,
) -> RecallResult:
    """Stage files back at random and compare them; the grace period begins if all are good.

    Parameters
    ----------
    n : int, optional
        Files to draw; as many as the policy asks for by default.
    policy : Policy, optional
        The caller's own, which names the archives if `to` does not; the plan has to be under it.

    Raises
    ------
    ArchiveRefused
        If the files are not archived yet, or did not come back as they were.
    """
    with subject.opened() as (writer, found):
        plan = subject.planned(found)
        subject.require(found, State.ARCHIVED)
        subject.check_policy(plan, policy)
        check_holds(found.shelf, now_ns=subject.clock())
        copies = open_copies(copies_of(to, policy=policy))
        size = n or plan.policy.release.recall_files
        result = _recalled(subject, writer, plan, copies, size)
        _write_down(subject, writer, plan, result)
        refusals = check_recall(result, plan.archive_files, n=size)
        if refusals:
            raise ArchiveRefused(refusals)
        subject.advance(writer, State.GRACE)
    return result


def _write_down(
    subject: Subject, writer: EvidenceWriter, plan: PlanPaper, result: RecallResult
) -> None:
    """Write a paper: the grace period counts from when the system says that it was written."""
    paper = RecallPaper(
        plan_id=plan.plan_id,
        by=subject.by,
        at_ns=subject.clock(),
        tested=result.tested,
        bad=result.bad,
        statement=result.statement,
    )
    name = f"recalls/{plan.plan_id[:8]}-{paper.at_ns}.json"
    writer.write(name, paper_bytes(paper))
    told = paper.model_dump(include={"plan_id", "tested", "bad", "statement"})
    writer.append("recalled", paper=name, **told)


def _recalled(
    subject: Subject, writer: EvidenceWriter, plan: PlanPaper, copies: Copies, n: int
) -> RecallResult:
    # Nobody who archived the files could know which ones would be drawn.
    drawn_by = hashlib.sha256(f"{plan.plan_id} {writer.head}".encode()).digest()
    with work_folder(subject.evidence, "recall") as workdir:
        result = recall_test(
            copies,
            plan.archive_files,
            n=n,
            seed=int.from_bytes(drawn_by[:8], "big"),
            workdir=workdir,
        )
    return replace(result, statement=result.statement + _held(plan, result.paths))


def _held(plan: PlanPaper, paths: Sequence[str]) -> str:
    """What packages that were recalled hold; empty if the plan has none."""
    if not plan.packages:
        return ""
    n_of = {plan.prefix + package.name: len(package.files) for package in plan.packages}
    n_files = sum(n_of.get(path, 1) for path in paths)
    return f" Packages count as files; those recalled hold {n_files} of {len(plan.payload)} files."
