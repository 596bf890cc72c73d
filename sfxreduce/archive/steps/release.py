"""Write the ticket that says what may leave the disk. It is not this program that acts on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfxreduce.archive.evidence.advance import arrow
from sfxreduce.archive.evidence.documents import (
    PlanPaper,
    ReleasePaper,
    TicketPaper,
    paper_bytes,
    read_paper,
)
from sfxreduce.archive.evidence.folder import EvidenceWriter
from sfxreduce.archive.evidence.gather import Gathered
from sfxreduce.archive.evidence.signing import SIGNATURE_SUFFIX, read_signing_key
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.evidence.tickets import limit_roots, one_ticket_at_a_time
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, refuse
from sfxreduce.archive.rules.states import PATH, State
from sfxreduce.archive.steps.copies import Copies, copies_of, open_copies, take_down
from sfxreduce.archive.steps.execute import check_holds
from sfxreduce.archive.steps.plan import verify_again
from sfxreduce.archive.steps.premises import judge_anew
from sfxreduce.archive.steps.ticket import TICKET, renewed, revoke_ticket
from sfxreduce.archive.tape.backends import Backend
from sfxreduce.archive.tape.receipts import Receipt
from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import RunNotFound
from sfxreduce.io.open import open_run

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Released", "cancel_run", "record_release", "release_run"]

HOUR_NS = 3_600 * 10**9
VALID_HOURS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """The ticket that was written, or would be."""

    plan: PlanPaper
    dry_run: bool
    state: State
    ticket: Path

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return {
            "dry_run": self.dry_run,
            "plan_id": self.plan.plan_id,
            "state": str(self.state),
            "ticket": str(self.ticket),
            "files": len(self.plan.sources),
            "bytes": self.plan.release_bytes,
            **({"caution": self.plan.policy.caution} if self.plan.policy.caution else {}),
        }


def release_run(
    subject: Subject,
    *,
    token: str | None = None,
    to: Sequence[str] = (),
    data_path: str = "",
    sign_key: Path | None = None,
    policy: Policy | None = None,
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> Released:
    """Write the release ticket of a run, after everything was looked at once more.

    The run is hashed anew, compared with its reduced store anew if that was done too long ago, and
    the archive is asked for every receipt anew.

    What is signed must not rest on what others wrote into the evidence: before that, the store is
    judged anew, and files are recalled anew from archives that the caller named.

    Parameters
    ----------
    token : str, optional
        Beginning of the plan's id; without it nothing is done, and it is told whether it could be.
    sign_key : Path, optional
        Private key that signs the ticket; that of `policy` by default, if it names one.
    policy : Policy, optional
        The caller's own, which names the archives if `to` does not; the plan has to be under it.
        Needed to sign.

    Raises
    ------
    ArchiveRefused
        If anything is missing.
    RefusedError
        If others can read the key.
    UsageError
        If no archive is named.
    """
    if token is None:
        return _would_release(subject, sign_key, policy, to)
    with subject.opened(rehash=True) as (writer, found):
        plan = subject.planned(found, token=token)
        subject.check_policy(plan, policy)
        key = _signing_key(plan, sign_key, policy)
        copies = open_copies(copies_of(to, policy=policy))
        for name in (TICKET, TICKET + SIGNATURE_SUFFIX):
            writer.check_replaceable(name)
        state = found.contents.state
        if state is State.RELEASE_TICKETED:
            state = arrow(writer, state, State.RELEASABLE)
        _require_ticket(subject, found, state)
        run = open_run(subject.run, data_path=data_path)
        if key is not None:
            judge_anew(writer, plan, run, copies, pool=pool, progress=progress)
        elif _is_old(subject, found, plan):
            verify_again(writer, run, Path(plan.hits), pool=pool, progress=progress)
        _ask_again(subject, writer, plan, copies)
        subject.advance(writer, State.RELEASABLE, rehash=True)
        state = _write_ticket(subject, writer, plan, key)
    return Released(plan=plan, dry_run=False, state=state, ticket=subject.evidence / TICKET)


def _write_ticket(
    subject: Subject, writer: EvidenceWriter, plan: PlanPaper, key: Ed25519PrivateKey | None
) -> State:
    roots = limit_roots(plan.policy, root=subject.root, evidence=subject.evidence)
    # What others release meanwhile has to count here, and this there.
    with one_ticket_at_a_time(roots):
        found = subject.look(writer)
        subject.require(found, State.RELEASE_TICKETED, state=State.RELEASABLE)
        check_holds(found.shelf, now_ns=subject.clock())
        data = paper_bytes(_ticket(subject, writer, plan, found))
        if key is not None:
            # First, so that no ticket lies there that still waits for its signature.
            writer.write(TICKET + SIGNATURE_SUFFIX, key.sign(data))
        writer.write(TICKET, data)
        subject.advance(writer, State.RELEASE_TICKETED)
    return writer.contents().state


def _signing_key(
    plan: PlanPaper, given: Path | None, policy: Policy | None
) -> Ed25519PrivateKey | None:
    """Key that signs, which never comes from the plan: whoever made that would choose it."""
    named = policy.release.sign_key if policy else ""
    path = given or (Path(named) if named else None)
    if path is None and plan.policy.release.sign_key:
        remedy = "name the key with --sign-key, or your own policy with --policy"
        raise ArchiveRefused([refuse("R22", "the plan's policy asks for one", remedy=remedy)])
    if path is not None and policy is None:
        raise ArchiveRefused([refuse("R22", "no policy of your own is named")])
    return None if path is None else read_signing_key(path)


def _would_release(
    subject: Subject, sign_key: Path | None, policy: Policy | None, to: Sequence[str]
) -> Released:
    found = subject.look()
    plan = subject.planned(found)
    subject.check_policy(plan, policy)
    _signing_key(plan, sign_key, policy)
    state = found.contents.state
    before = State.RELEASABLE if state is State.RELEASE_TICKETED else state
    _require_ticket(subject, found, before)
    open_copies(copies_of(to, policy=policy))  # refused now, not when it is done
    return Released(plan=plan, dry_run=True, state=state, ticket=subject.evidence / TICKET)


def _require_ticket(subject: Subject, found: Gathered, state: State) -> None:
    """Refuse unless a ticket could be written once all was looked at anew and found good."""
    facts = renewed(found.facts, subject.clock())
    subject.require(found, State.RELEASE_TICKETED, state=state, facts=facts)


def _is_old(subject: Subject, found: Gathered, plan: PlanPaper) -> bool:
    """Whether the store was compared with the run too long ago."""
    verified = found.facts.verified
    age = subject.clock() - (verified.at_ns if verified else 0)
    return age > plan.policy.release.verified_days * 24 * HOUR_NS


def _ask_again(subject: Subject, writer: EvidenceWriter, plan: PlanPaper, copies: Copies) -> None:
    """Ask the archive for every file."""

    def ask(backend: Backend, pool: str, part: str) -> Receipt:
        return backend.query(plan.prefix + part, pool=pool)

    take_down(writer, plan, copies, ask=ask, action="query", began_ns=subject.clock())


def _ticket(
    subject: Subject, writer: EvidenceWriter, plan: PlanPaper, found: Gathered
) -> TicketPaper:
    now_ns = subject.clock()
    return TicketPaper(
        plan_id=plan.plan_id,
        run=plan.run,
        disposition=str(plan.policy.release.disposition),
        by=subject.by,
        written_at_ns=now_ns,
        valid_until_ns=now_ns + VALID_HOURS * HOUR_NS,
        files=plan.sources,
        bytes=plan.release_bytes,
        packages=plan.packages,
        why=tuple(_why(plan, found)),
        journal_sha256=writer.head,
        policy=plan.policy,
    )


def _why(plan: PlanPaper, found: Gathered) -> list[str]:
    """What the release rests on, one sentence each."""
    facts, release = found.facts, plan.policy.release
    recalled = found.contents.last("recalled") or {}
    again = found.contents.last("recalled-again", plan_id=plan.plan_id)
    told = [
        f"Policy '{plan.policy.name}', disposition {release.disposition}.",
        *([f"Caution: {plan.policy.caution}."] if plan.policy.caution else []),
        f"Planned by {plan.planner}; approved by "
        + ", ".join(
            sorted(f"{a.by} (account {a.account}, {a.role or 'no role'})" for a in facts.approvals)
        )
        + ".",
        f"Every kept event in {plan.hits} equals its source, bit for bit.",
        f"{len(plan.payload)} files lie on tape, as {len(plan.packages)} packages and "
        f"{len(plan.parcels) - len(plan.packages)} single files, {release.copies} copies each, "
        "with their checksums.",
        f"Recall test: {recalled.get('statement', '')}",
    ]
    if again is not None:
        told.append(f"Recalled again by {again['by']} before it was signed: {again['statement']}")
    if facts.certificate is not None:
        told.append(
            f"With {facts.certificate.confidence:.4g} confidence at most "
            f"{facts.certificate.loss_upper:.4g} of the hits were rejected."
        )
    return told


def record_release(subject: Subject, receipt: Path) -> State:
    """Take down what the facility's tool says it released.

    Raises
    ------
    ArchiveRefused
        If it is about another plan or ticket.
    RunNotFound
        If there is no such file.
    """
    try:
        data = receipt.read_bytes()
    except OSError as error:
        raise RunNotFound(
            f"{receipt}: cannot be read ({error.strerror}); check --receipt"
        ) from error
    paper = read_paper(ReleasePaper, data, where=str(receipt))
    with subject.opened() as (writer, found):
        plan = subject.planned(found)
        ticket = found.contents.paper(TICKET) or b""
        if (
            paper.plan_id != plan.plan_id
            or paper.ticket_sha256 != hashlib.sha256(ticket).hexdigest()
        ):
            raise ArchiveRefused([refuse("R10", f"{receipt} is about another plan or ticket")])
        writer.write("release-receipt.json", data)
        subject.advance(writer, State.RELEASED)
        return writer.contents().state


def cancel_run(subject: Subject) -> State:
    """Keep the copy on the disk after all.

    Raises
    ------
    ArchiveRefused
        If the run was ticketed or released already, or is not archived.
    """
    with subject.opened() as (writer, found):
        state = found.contents.state
        revoke_ticket(writer, found, reason=f"{subject.by} keeps the run")
        if state is State.RELEASE_TICKETED:
            state = arrow(writer, state, State.RELEASABLE)
        if state not in PATH[PATH.index(State.ARCHIVED) : PATH.index(State.RELEASE_TICKETED)]:
            detail = f"the run is {state}, there is nothing to keep from being released"
            raise ArchiveRefused([refuse("R11", detail, remedy="nothing is to be done")])
        return arrow(writer, state, State.RESTORED)
