"""Where runs are on their way to the archive: one of them, all below a folder, night by night."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sfxreduce.archive.evidence.advance import advance, missing
from sfxreduce.archive.evidence.find import find_evidence
from sfxreduce.archive.evidence.folder import Clock, EvidenceFolder
from sfxreduce.archive.evidence.gather import Gathered, gather
from sfxreduce.archive.evidence.subject import Subject, wall_clock
from sfxreduce.archive.evidence.tickets import TicketBook
from sfxreduce.archive.rules.explain import explain_policy
from sfxreduce.archive.rules.facts import Evidence
from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal
from sfxreduce.archive.rules.states import PATH, State
from sfxreduce.archive.steps.ticket import HELD, renewed
from sfxreduce.errors import SfxReduceError

__all__ = ["Status", "explain_run", "nightly_runs", "status_run", "status_runs"]

DAY_NS = 86_400 * 10**9
VOID = "ticket void"
WAITING = (State.RECALL_TESTED, State.GRACE, State.RELEASABLE)
"""States in which only time, people and a last look are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Where a run is, and what keeps it there.

    Parameters
    ----------
    history : tuple of State
        All states it went through.
    next : State or None
        Where it goes next.
    refusals : tuple of Refusal
        Why it does not go there now.
    plan_id : str
        Empty if there is no plan.
    files, bytes : int
        That may leave the disk by the plan.
    standing : str
        What the state means now, where that depends on more than the state: which ticket is void,
        who is waited for, until when. Empty where it says all.
    policy : str
        Name of the plan's policy, and what to beware of; empty if there is no plan.
    releasable_from : str or None
        End of grace and retention, once it is known.
    recall : str
        What the recall test proved.
    ready : bool
        A ticket would be written if it were asked for now, and what is looked at anew for that is
        found good.
    """

    run: str
    state: State
    history: tuple[State, ...]
    held: bool
    next: State | None
    refusals: tuple[Refusal, ...]
    plan_id: str
    files: int
    bytes: int
    standing: str
    policy: str
    releasable_from: str | None
    recall: str
    jobs: tuple[str, ...]
    ready: bool

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        return asdict(self)


def status_run(
    subject: Subject, *, book: TicketBook | None = None, found: Gathered | None = None
) -> Status:
    """Look at a run and its evidence; no file of the run is read and nothing is written.

    Parameters
    ----------
    book : TicketBook, optional
        That counts tickets, so that they are counted once for many runs.
    found : Gathered, optional
        The facts, if they were taken down already.
    """
    found = found or gather(subject.folder, subject.run, root=subject.root, book=book)
    state, facts = found.contents.state, found.facts
    if state in WAITING:
        facts = renewed(facts, subject.clock())
    after = PATH[PATH.index(state) + 1] if state in PATH[:-1] else None
    now_ns = subject.clock()
    refusals: tuple[Refusal, ...] = ()
    if after is not None:
        refusals = missing(state, facts, policy=found.policy, now_ns=now_ns, until=after)
    recalled = found.contents.last("recalled")
    plan, releasable_from = found.plan, _releasable_from(found)
    ready = state in WAITING and not missing(
        state, facts, policy=found.policy, now_ns=now_ns, until=State.RELEASE_TICKETED
    )
    return Status(
        run=str(subject.run),
        state=state,
        history=found.contents.states,
        held=bool(facts.standing_holds(now_ns)),
        next=after,
        refusals=refusals,
        plan_id=plan.plan_id if plan else "",
        files=len(plan.sources) if plan else 0,
        bytes=plan.release_bytes if plan else 0,
        standing=_standing(state, facts, now_ns, ready=ready, until=releasable_from),
        policy=plan.policy.named if plan else "",
        releasable_from=releasable_from,
        recall=recalled["statement"] if recalled else "",
        jobs=facts.open_jobs,
        ready=ready,
    )


def _standing(state: State, facts: Evidence, now_ns: int, *, ready: bool, until: str | None) -> str:
    """What a state means now, in a few words."""
    if state is State.RELEASE_TICKETED:
        if facts.standing_holds(now_ns) or facts.ticket_void.startswith(HELD):
            return f"{VOID}: a hold was placed"
        void = facts.ticket_void
        return f"{VOID}: {void[0].lower()}{void[1:]}" if void else "waiting for the facility"
    if ready:
        return "a ticket can be written"
    early = until is not None and datetime.fromisoformat(until).timestamp() * 1e9 > now_ns
    return f"stays on the disk until {until}" if state in WAITING and early else ""


def _releasable_from(found: Gathered) -> str | None:
    plan, recall = found.plan, found.facts.recall
    if plan is None or recall is None:
        return None
    release = plan.policy.release
    grace = recall.at_ns + int(release.grace_days * DAY_NS)
    ends_ns = max(grace, plan.experiment_end_ns + int(release.min_retention_days * DAY_NS))
    return datetime.fromtimestamp(ends_ns / 1e9, UTC).isoformat(timespec="seconds")


def explain_run(subject: Subject) -> list[str]:
    """Say in sentences where a run is, why, what is missing, and what its policy asks for."""
    from sfxreduce.report.report import human_bytes  # what makes pages takes a second to load

    found = gather(subject.folder, subject.run)
    status = status_run(subject)
    told = [f"{status.run} is {status.state}{', and held' if status.held else ''}."]
    if status.plan_id:
        told.append(
            f"Plan {status.plan_id[:8]} of {found.plan.planner if found.plan else ''}: "
            f"{status.files} files, {human_bytes(status.bytes)} may leave the disk by it."
        )
    if status.recall:
        told.append(status.recall)
    if status.standing:
        told.append(f"Standing: {status.standing}.")
    if status.releasable_from is not None:
        told.append(f"Its time on the disk ends on {status.releasable_from}.")
    if status.next is not None:
        told += [f"Not {status.next} yet: {refusal}." for refusal in status.refusals] or [
            f"Nothing stands between it and {status.next}."
        ]
    return [*told, *explain_policy(found.policy)]


def status_runs(root: Path, *, clock: Clock = wall_clock) -> dict[str, Any]:
    """Where all runs below a folder are.

    Returns
    -------
    dict
        ``runs`` (run, state, standing, policy, held, codes, bytes, releasable_from), ``states`` and
        ``standings`` (how many are where, and stand how), ``held``,
        ``attention`` (runs with evidence that is not to be trusted, or that are INVALIDATED),
        ``ready`` (runs that a ticket could be
        written for), ``bytes_ready``, ``bytes_ticketed`` (by tickets
        that are not void) and ``bytes_released``.
    """
    whole = root.absolute()
    # Tickets are counted once, not once for each run.
    book = TicketBook(clock())
    rows = [_row(run, evidence, clock, whole, book) for run, evidence in find_evidence(whole)]
    states = Counter(row["state"] for row in rows)
    return {
        "root": str(root),
        "runs": rows,
        "states": {str(state): states[state] for state in State if states[state]},
        "standings": dict(Counter(row["standing"] for row in rows if row["standing"])),
        "held": sum(row["held"] for row in rows),
        "attention": [row["run"] for row in rows if _needs_attention(row)],
        "ready": [row["run"] for row in rows if row["ready"]],
        "bytes_ready": sum(row["bytes"] for row in rows if row["ready"]),
        "bytes_ticketed": _bytes(rows, State.RELEASE_TICKETED),
        "bytes_released": _bytes(rows, State.RELEASED),
    }


def _row(run: Path, evidence: Path, clock: Clock, root: Path, book: TicketBook) -> dict[str, Any]:
    subject = Subject(run=run, evidence=evidence, by="status", clock=clock, root=root)
    try:
        found = status_run(subject, book=book)
    except SfxReduceError as error:
        codes = (
            [refusal.code for refusal in error.refusals]
            if isinstance(error, ArchiveRefused)
            else []
        )
        return {
            "run": str(run),
            "state": "UNREADABLE",
            "standing": "",
            "policy": "",
            "releasable_from": None,
            "held": False,
            "ready": False,
            "codes": codes,
            "bytes": 0,
            "problem": str(error),
        }
    return {
        "run": found.run,
        "state": str(found.state),
        "standing": found.standing,
        "policy": found.policy,
        "releasable_from": found.releasable_from,
        "held": found.held,
        "ready": found.ready,
        "codes": sorted({refusal.code for refusal in found.refusals}),
        "bytes": found.bytes,
    }


def _needs_attention(row: dict[str, Any]) -> bool:
    bad = {"R03", "R06", "R10", "R16", "R17"} & set(row["codes"])
    return bool(bad) or row["state"] in ("UNREADABLE", State.INVALIDATED)


def _bytes(rows: list[dict[str, Any]], state: State) -> int:
    return sum(
        row["bytes"]
        for row in rows
        if row["state"] == state and not row["standing"].startswith(VOID)
    )


def nightly_runs(root: Path, *, clock: Clock = wall_clock) -> dict[str, Any]:
    """Bring every run below a folder to where it may be, tickets left out, and sum up.

    A run whose source changed becomes INVALIDATED. Nothing is copied, and nobody is asked: what is
    missing for the next step is in the summary.

    Returns
    -------
    dict
        As `status_runs` gives it, and ``moved``: runs, and from where to where they went.
    """
    moved, failed = [], []
    whole, book = root.absolute(), TicketBook(clock())
    for run, evidence in find_evidence(whole):
        subject = Subject(run=run, evidence=evidence, by="nightly", clock=clock, root=whole)
        before = EvidenceFolder(path=evidence, clock=clock).read().state
        after = before
        try:
            with subject.opened(book=book) as (writer, found):
                if found.plan is None or before not in PATH[PATH.index(State.PLANNED) :]:
                    continue
                # What is refused tonight is told by the summary.
                with suppress(ArchiveRefused):
                    until = max(before, State.RELEASABLE, key=PATH.index)
                    advance(writer, found, policy=found.policy, now_ns=clock(), until=until)
                after = writer.contents().state
        except SfxReduceError as error:
            failed.append({"run": str(run), "problem": str(error)})
            continue
        if after is not before:
            moved.append({"run": str(run), "from": str(before), "to": str(after)})
    return {**status_runs(root, clock=clock), "moved": moved, "failed": failed}
