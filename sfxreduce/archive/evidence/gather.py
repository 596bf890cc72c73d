"""From an evidence folder, and a look at the run, to the facts that arrows are judged by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sfxreduce.archive.evidence import owners
from sfxreduce.archive.evidence.documents import (
    ApprovalPaper,
    JobPaper,
    Kind,
    PlanPaper,
    ReleasePaper,
    TicketPaper,
    read_paper,
)
from sfxreduce.archive.evidence.folder import Contents, EvidenceFolder
from sfxreduce.archive.evidence.holds import HoldShelf
from sfxreduce.archive.evidence.pins import compare_pins, manifest_sha256
from sfxreduce.archive.evidence.tickets import TicketBook, limit_roots
from sfxreduce.archive.rules.facts import (
    Approval,
    CertificateFacts,
    Evidence,
    PlanFacts,
    RecallFacts,
    ReceiptFacts,
    SourcePin,
    StoreFacts,
    Verified,
)
from sfxreduce.archive.rules.policy import DEFAULT_PRESET, Policy, policy_sha256, preset
from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal
from sfxreduce.archive.tape.receipts import Receipt, check_receipts, receipt_from_json
from sfxreduce.errors import SchemaError

__all__ = ["Gathered", "gather"]


@dataclass(frozen=True, slots=True)
class Gathered:
    """Facts, and the papers that they came from; `plan` is the one that still counts."""

    contents: Contents
    facts: Evidence
    plan: PlanPaper | None
    shelf: HoldShelf

    @property
    def policy(self) -> Policy:
        """That of the plan; without one the default preset."""
        return self.plan.policy if self.plan else preset(DEFAULT_PRESET)


def gather(
    folder: EvidenceFolder,
    run: Path,
    *,
    rehash: bool = False,
    contents: Contents | None = None,
    root: Path | None = None,
    book: TicketBook | None = None,
    policy: Policy | None = None,
) -> Gathered:
    """Take down all that is known of a run now.

    Parameters
    ----------
    rehash : bool
        Read the whole source and compare it with its pins; else only look at it.
    contents : Contents, optional
        Of the folder, if they were read already.
    root : Path, optional
        Folder below which tickets count for the daily limit; see `limit_roots`.
    book : TicketBook, optional
        That counts them.
    policy : Policy, optional
        Whose folder of holds counts, if the run has no plan.
    """
    found = folder.read() if contents is None else contents
    unknown: list[str] = []
    tampered = list(found.tampered)
    plan = _paper(PlanPaper, found, "plan.json", unknown)
    shelf = _shelf(found, run, plan, policy)
    held = shelf.found(found.entries)
    unknown += held.unknown
    roots = limit_roots(plan.policy if plan else None, root=root, evidence=found.path)
    released = (book or TicketBook(folder.clock())).others(roots, found.path)
    facts = Evidence(
        name=run.name,
        last_seen_ns=found.last_seen_ns,
        source=_source(run, plan, rehash=rehash),
        experiment_end_ns=plan.experiment_end_ns if plan else None,
        store=_store(found, plan),
        verified=_verified(found),
        certificate=_certificate(found),
        plan=_plan(found, plan, tampered),
        approvals=tuple(_approvals(found, unknown, tampered)),
        receipts=_receipts(found, plan, unknown),
        recall=_recall(found),
        holds=held.holds,
        missing_holds=held.missing,
        holds_problem=held.problem,
        open_jobs=tuple(_jobs(found, unknown)),
        released_today_bytes=released.bytes,
        limit_problem=released.problem,
        **_ticket(found, unknown),
        released_plan_id=_released(found, unknown),
        restored=found.last("restored") is not None,
        tampered=tuple(tampered),
        unknown=tuple(unknown),
    )
    return Gathered(found, facts, plan, shelf)


def _shelf(found: Contents, run: Path, plan: PlanPaper | None, given: Policy | None) -> HoldShelf:
    """Where the holds of a run lie: by its plan, else as told."""
    runs = {run: None} | ({Path(plan.run): None} if plan else {})
    owned = found.owned("plan.json") if plan else None
    return HoldShelf(
        evidence=found.path,
        runs=tuple(runs),
        policy=plan.policy if plan else given or preset(DEFAULT_PRESET),
        planner=owned.uid if owned else None,
    )


def _source(run: Path, plan: PlanPaper | None, *, rehash: bool) -> SourcePin:
    return compare_pins(run, plan.sources, rehash=rehash) if plan else SourcePin.UNPINNED


def _store(found: Contents, plan: PlanPaper | None) -> StoreFacts | None:
    line = found.last("inspected")
    if line is None:
        return None
    same = manifest_sha256(Path(plan.hits if plan else line["hits"])) == line["manifest_sha256"]
    if plan is not None:
        same = same and plan.hits_manifest_sha256 == line["manifest_sha256"]
    return StoreFacts(**{**line["facts"], "same": same})


def _verified(found: Contents) -> Verified | None:
    line = found.last("verified")
    return None if line is None else Verified(ok=bool(line["ok"]), at_ns=int(line["at_ns"]))


def _certificate(found: Contents) -> CertificateFacts | None:
    """What was found when it was taken up: the journal vouches for the certificate, and for the
    reduced store that it was compared with.
    """
    data, line = found.paper("certificate.json"), found.last("certificate")
    if data is None or line is None:
        return None
    # When this certificate was seen first, not when it was last taken up.
    first = min(
        int(e.body["at_ns"])
        for e in found.entries
        if e.body.get("event") == "certificate" and e.body["certificate"] == line["certificate"]
    )
    intact = hashlib.sha256(data).hexdigest() == line["certificate"]
    return CertificateFacts(**{**line["facts"], "intact": intact, "at_ns": first})


def _plan(found: Contents, plan: PlanPaper | None, tampered: list[str]) -> PlanFacts | None:
    line, owned = found.last("written", file="plan.json"), found.owned("plan.json")
    if plan is None or line is None or owned is None:
        return None
    if owned.problem:
        tampered.append(f"plan.json: {owned.problem}")
    return PlanFacts(
        plan_id=plan.plan_id,
        planner=plan.planner,
        uid=owned.uid,
        policy_sha256=policy_sha256(plan.policy),
        at_ns=int(line["at_ns"]),
        n_payload=len(plan.parcels),
        release_bytes=plan.release_bytes,
    )


def _approvals(found: Contents, unknown: list[str], tampered: list[str]) -> Iterator[Approval]:
    """Approvals, each by the account that owns its paper."""
    for name, owned in found.papers("approvals").items():
        if owned.problem:
            tampered.append(f"{name}: {owned.problem}")
        elif paper := _known(ApprovalPaper, owned.data, name, unknown):
            yield Approval(
                by=paper.by,
                uid=owned.uid,
                account=owners.account_name(owned.uid),
                role=paper.role,
                plan_id=paper.plan_id,
                at_ns=paper.at_ns,
            )


def _receipts(found: Contents, plan: PlanPaper | None, unknown: list[str]) -> ReceiptFacts | None:
    asked = found.last("asked")
    if plan is None or asked is None or asked["plan_id"] != plan.plan_id:
        return None
    release = plan.policy.release
    receipts = list(_read_receipts(found, unknown))
    faults = check_receipts(
        receipts,
        plan.archive_files,
        copies=release.copies,
        distinct_pools=release.distinct_pools,
    )
    told = [Refusal(**fault) for fault in asked["faults"]]
    return ReceiptFacts(
        plan_id=plan.plan_id,
        faults=tuple(dict.fromkeys([*told, *faults])),
        oldest_ns=int(asked["began_ns"]),
    )


def _read_receipts(found: Contents, unknown: list[str]) -> Iterator[Receipt]:
    for name, owned in found.papers("receipts").items():
        try:
            for told in json.loads(owned.data):
                yield receipt_from_json(told, where=name)
        except (ValueError, TypeError, SchemaError) as error:
            unknown.append(f"{name}: {error}")


def _recall(found: Contents) -> RecallFacts | None:
    line = found.last("recalled")
    if line is None:
        return None
    counts = {name: int(line[name]) for name in ("tested", "bad", "at_ns")}
    if owned := found.owned(str(line.get("paper", ""))):
        # A time in a line is whatever its writer says; this one only the system can set.
        counts["at_ns"] = max(counts["at_ns"], owned.changed_ns)
    return RecallFacts(plan_id=line["plan_id"], **counts)


def _jobs(found: Contents, unknown: list[str]) -> Iterator[str]:
    """What others say they do, and what was begun here and not ended."""
    for file in sorted((found.path / "jobs").glob("*.json")):
        try:
            paper = read_paper(JobPaper, file.read_bytes(), where=f"jobs/{file.name}")
            yield f"{paper.name} of {paper.by}"
        except (ArchiveRefused, OSError) as error:
            unknown.append(f"jobs/{file.name}: {error}")
    jobs = [e.body for e in found.entries if e.body.get("event") in ("job-began", "job-ended")]
    ended = {body["job"] for body in jobs if body["event"] == "job-ended"}
    for body in jobs:
        if body["event"] == "job-began" and body["job"] not in ended:
            yield f"{body['what']} of {body['by']}"


def _ticket(found: Contents, unknown: list[str]) -> dict[str, str]:
    """Plan of the ticket in force, or why it is void."""
    ticket = _paper(TicketPaper, found, "release-ticket.json", unknown)
    if ticket is None:
        return {}
    if ticket.files:
        return {"ticket_plan_id": ticket.plan_id}
    # One that was revoked lists nothing.
    return {"ticket_void": ticket.why[0] if ticket.why else "it lists nothing"}


def _released(found: Contents, unknown: list[str]) -> str:
    """Plan that the facility acted upon; only if it names the ticket that was written."""
    ticket = found.paper("release-ticket.json")
    if ticket is None:
        return ""
    paper = _paper(ReleasePaper, found, "release-receipt.json", unknown)
    same = paper and paper.ticket_sha256 == hashlib.sha256(ticket).hexdigest()
    return paper.plan_id if paper and same else ""


def _paper(kind: type[Kind], found: Contents, name: str, unknown: list[str]) -> Kind | None:
    """A paper of the evidence; None if it is not there, or holds what is not known."""
    data = found.paper(name)
    return None if data is None else _known(kind, data, name, unknown)


def _known(kind: type[Kind], data: bytes, name: str, unknown: list[str]) -> Kind | None:
    try:
        return read_paper(kind, data, where=name)
    except ArchiveRefused as error:
        unknown += [refusal.message for refusal in error.refusals]
        return None
