"""Plan what is archived and what may then leave the disk; approve it."""

from __future__ import annotations

import grp
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sfxreduce.archive.evidence import owners
from sfxreduce.archive.evidence.advance import send_back
from sfxreduce.archive.evidence.documents import (
    ApprovalPaper,
    PinnedFile,
    PlanPaper,
    paper_bytes,
    paper_id,
)
from sfxreduce.archive.evidence.folder import APPENDED, EvidenceWriter
from sfxreduce.archive.evidence.gather import Gathered
from sfxreduce.archive.evidence.inspect import (
    audited_events,
    certificate_facts,
    read_reduced,
    store_facts,
)
from sfxreduce.archive.evidence.outputs import outputs_beside
from sfxreduce.archive.evidence.pins import files_of_run, manifest_sha256, pin_files
from sfxreduce.archive.evidence.subject import Subject, check_text
from sfxreduce.archive.rules.policy import DEFAULT_PRESET, Disposition, Policy, preset
from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal, refuse
from sfxreduce.archive.rules.states import PATH, State
from sfxreduce.archive.steps.packing import pack_payload
from sfxreduce.archive.steps.repack import store_events
from sfxreduce.archive.tape.bags import PACKAGES_FILE, PLAN_FILE, write_bag
from sfxreduce.archive.tape.paths import folder_of
from sfxreduce.audit.certificate import Certificate
from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.decisions.decide import Decision
from sfxreduce.errors import LeadsOutside, RunNotFound, SchemaError, UsageError
from sfxreduce.io.files.durable import FileRecord, output_errors
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.store.provisional import refuse_provisional
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.run.run import LeadsOn, Run

__all__ = [
    "PlanOptions",
    "PlannedRun",
    "approve_run",
    "inspect_again",
    "plan_run",
    "plan_runs",
    "verify_again",
]

FINISHED = (State.RELEASE_TICKETED, State.RELEASED, State.RESTORING)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What a plan is made from.

    Parameters
    ----------
    hits : Path, optional
        The reduced store.
    certificate : Path, optional
        By default ``certificate.json`` of the evidence folder, if one was laid there.
    ended_ns : int, optional
        End of the experiment; by default when the youngest file of the run was last changed.
    data_path : str
        Where the frames lie inside an HDF5 file.
    gid : int, optional
        Group to share the evidence with.
    """

    policy: Policy
    hits: Path | None = None
    certificate: Path | None = None
    ended_ns: int | None = None
    data_path: str = ""
    gid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A plan, and where its run is with it."""

    plan: PlanPaper
    state: State
    evidence: Path

    def to_json(self) -> dict[str, Any]:
        """Return what goes to tape and what may leave the disk as a JSON object."""
        plan = self.plan
        return {
            "run": plan.run,
            "plan_id": plan.plan_id,
            "planner": plan.planner,
            "policy": plan.policy.name,
            **({"caution": plan.policy.caution} if plan.policy.caution else {}),
            "hits": plan.hits,
            "disposition": str(plan.policy.release.disposition),
            "state": str(self.state),
            "archive_files": len(plan.payload),
            "archive_bytes": sum(file.size for file in plan.payload),
            "parcels": len(plan.parcels),
            "packages": [
                {"name": package.name, "bytes": package.size, "files": len(package.files)}
                for package in plan.packages
            ],
            "release_files": len(plan.sources),
            "release_bytes": plan.release_bytes,
            "evidence": str(self.evidence),
        }


def plan_runs(
    subjects: Sequence[Subject],
    *,
    hits: Sequence[Path] = (),
    policy: Policy | None = None,
    certificate: Path | None = None,
    ended_ns: int | None = None,
    data_path: str = "",
    group: str = "",
    pool: Pool = IN_PROCESS,
    progress: Progress = silent,
) -> list[PlannedRun]:
    """Plan several runs; one that is refused does not keep the others from being planned.

    Parameters
    ----------
    hits : sequence of Path
        The reduced store of each run, in their order. By default the one in the run's folder that
        names the run as its source.
    policy : Policy, optional
        The laptop preset if not given.
    certificate, ended_ns, data_path
        See `PlanOptions`; a certificate is for one run.
    group : str
        Name or number of the group that the evidence is shared with: its members add papers, and
        nobody removes those of others.

    Raises
    ------
    ArchiveRefused
        With the refusals of all runs, after the others were planned.
    UsageError
        If there are not as many reduced stores as runs, one certificate for several runs, or no
        such group.
    """
    if hits and len(hits) != len(subjects):
        raise UsageError(f"archive plan: expected {len(subjects)} --hits, found {len(hits)}")
    if len(subjects) > 1 and certificate:
        raise UsageError("archive plan: --certificate and --evidence are for one run")
    planned: list[PlannedRun] = []
    refusals: list[Refusal] = []
    for number, subject in enumerate(subjects):
        options = PlanOptions(
            policy=policy or preset(DEFAULT_PRESET),
            hits=hits[number] if hits else None,
            certificate=certificate,
            ended_ns=ended_ns,
            data_path=data_path,
            gid=_group_id(group) if group else None,
        )
        try:
            plan = plan_run(subject, options, pool=pool, progress=progress)
        except ArchiveRefused as error:
            refusals += error.refusals
            continue
        state = subject.folder.read().state
        planned.append(PlannedRun(plan=plan, state=state, evidence=subject.evidence))
    if refusals:
        raise ArchiveRefused(refusals)
    return planned


def _group_id(group: str) -> int:
    try:
        return int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise UsageError(
            f"--group {group!a}: there is no such group; 'groups' lists yours"
        ) from error


def plan_run(
    subject: Subject, options: PlanOptions, *, pool: Pool, progress: Progress = silent
) -> PlanPaper:
    """Pin a run, compare its reduced store with it, and write down what is to be archived.

    The run is read whole, twice: for the checksums of its files, and for the comparison. Files that
    go in packages are read once more, for the checksums of those. A plan
    that says the same as the one that is there leaves that one and its approvals as they are.

    Raises
    ------
    ArchiveRefused
        If the policy, or a proof that is missing, forbids it.
    RefusedError
        If run or reduced store is marked as provisional.
    RunNotFound
        If there is no such run.
    """
    if not subject.run.exists():
        raise RunNotFound(f"{subject.run}: no such file or folder; check the path of the run")
    hits = (options.hits or _hits_beside(subject.run)).absolute()
    check_text(str(hits), option="--hits")
    for store in (subject.run, hits):
        refuse_provisional(store)
    if not hits.exists():
        raise ArchiveRefused([refuse("R01", f"there is nothing at {hits}")])
    run = _opened(subject.run, data_path=options.data_path)
    with subject.opened(create=True, gid=options.gid) as (writer, found):
        state = found.contents.state
        if state in FINISHED:
            raise UsageError(f"{subject.run}: is {state}; what was ticketed is not planned again")
        pinned = _pinned(run, subject.run)
        same = _still_good(found, pinned, hits, options, subject.by)
        if found.plan is not None and same:
            return found.plan
        writer.check_replaceable("plan.json")
        if found.plan is not None or state not in PATH:
            send_back(writer, state)
        _take_up(writer, hits, options.certificate)
        certificate = inspect_again(writer, run, hits)
        verify_again(writer, run, hits, pool=pool, progress=progress)
        subject.advance(writer, State.CERTIFIED, policy=options.policy)
        plan = _draft(subject, pinned, hits, options)
        plan = pack_payload(_with_payload(plan, subject, run, certificate, pool=pool))
        # Before the plan: what brings single events back opens the files in the same way.
        writer.append("read-with", data_path=options.data_path)
        writer.write("plan.json", paper_bytes(plan))
        subject.advance(writer, State.PLANNED, policy=options.policy)
        _write_bag(subject, plan)
        _share(subject)
    return plan


def _hits_beside(run: Path) -> Path:
    """Reduced store that was made from a run and lies beside it.

    Raises
    ------
    ArchiveRefused
        With R01, if there is none.
    UsageError
        If there are several.
    """
    found = outputs_beside(run.absolute())
    if not found:
        raise ArchiveRefused([refuse("R01", f"none was named, and none lies beside {run}")])
    if len(found) > 1:
        names = ", ".join(map(str, found))
        raise UsageError(
            f"archive plan: {run}: {len(found)} reduced stores were made from it, "
            f"{names}; name one of them with --hits"
        )
    return found[0]


def _opened(path: Path, *, data_path: str) -> Run:
    """Open a run of whose files a copy elsewhere can be read as well.

    Raises
    ------
    ArchiveRefused
        With R23.
    UsageError
        If it is a folder of single files.
    """
    try:
        run = open_run(path, data_path=data_path)
    except LeadsOutside as error:
        raise ArchiveRefused([refuse("R23", str(error))]) from error
    if path.is_dir() and not isinstance(run.source, ZarrFrames):
        raise UsageError(
            f"{path}: expected a run store or a file, found a folder of single files; store them "
            "with 'sfxreduce ingest', then filter and archive that store"
        )
    if isinstance(run.source, LeadsOn) and run.source.unmovable:
        raise ArchiveRefused([refuse("R23", why) for why in run.source.unmovable])
    return run


def _pinned(run: Run, path: Path) -> tuple[PinnedFile, ...]:
    """Pin every file that a run is read from.

    Raises
    ------
    ArchiveRefused
        With R23, if one of them is a link, or lies elsewhere.
    """
    try:
        return pin_files(path, files_of_run(run, path))
    except SchemaError as error:
        raise ArchiveRefused([refuse("R23", str(error))]) from error


def _share(subject: Subject) -> None:
    """Let the group of a shared folder read what was made there under some umask."""
    if owners.is_shared(subject.evidence):
        gid = subject.evidence.stat().st_gid
        with output_errors(subject.evidence):
            owners.share_all(subject.evidence, gid, appended=APPENDED)


def _still_good(
    found: Gathered, pinned: Sequence[PinnedFile], hits: Path, options: PlanOptions, by: str
) -> bool:
    """Whether the plan that is there says what a new one would say."""
    plan, state = found.plan, found.contents.state
    if plan is None or state not in PATH or PATH.index(state) < PATH.index(State.PLANNED):
        return False
    ended = options.ended_ns in (None, plan.experiment_end_ns)
    ours = (plan.sources, plan.policy, plan.hits, plan.hits_manifest_sha256, plan.planner)
    theirs = (tuple(pinned), options.policy, str(hits), manifest_sha256(hits), by)
    return ours == theirs and ended and options.certificate is None


def _take_up(writer: EvidenceWriter, hits: Path, given: Path | None) -> None:
    """Copy the certificate into the evidence, if there is one."""
    path = given or writer.path / "certificate.json"
    if given is None and not path.exists():
        return
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunNotFound(
            f"{path}: cannot be read ({error.strerror}); check --certificate"
        ) from error
    facts, certificate = certificate_facts(data, hits=hits, at_ns=0)
    if certificate is None:
        # It stays out of the evidence, which would not be trusted any more with it.
        found = [refuse("R10", f"{path} is not as it was made"), refuse("R02", f"{path}")]
        raise ArchiveRefused(found)
    writer.write("certificate.json", data)
    digest = hashlib.sha256(data).hexdigest()
    writer.append("certificate", certificate=digest, facts=asdict(facts))


def inspect_again(writer: EvidenceWriter, run: Run, hits: Path) -> Certificate | None:
    """Take down what the reduced store says, and return the certificate of the evidence."""
    data = writer.contents().paper("certificate.json")
    certificate = certificate_facts(data, hits=hits, at_ns=0)[1] if data else None
    facts = store_facts(hits, n_events=run.n_events, certificate=certificate)
    # Audited events that the store lacks are stored beside it when the plan is made.
    told = {k: v for k, v in asdict(replace(facts, audited_kept=True)).items() if k != "same"}
    writer.append("inspected", hits=str(hits), manifest_sha256=manifest_sha256(hits), facts=told)
    return certificate


def verify_again(
    writer: EvidenceWriter, run: Run, hits: Path, *, pool: Pool, progress: Progress = silent
) -> None:
    """Compare a reduced store with its run, whole, and write down what was found."""
    found = verify_run(hits, against=run, pool=pool, progress=progress)
    writer.append(
        "verified",
        ok=found.ok,
        checked=found.checked,
        hits=str(hits),
        manifest_sha256=manifest_sha256(hits),
        problems=list(found.problems[:5]),
    )


def _draft(
    subject: Subject, pinned: tuple[PinnedFile, ...], hits: Path, options: PlanOptions
) -> PlanPaper:
    """Plan to archive the raw run."""
    key = hashlib.sha256(json.dumps([f.model_dump() for f in pinned]).encode()).hexdigest()[:16]
    certificate = subject.folder.read().paper("certificate.json")
    ended = options.ended_ns or max(file.mtime_ns for file in pinned)
    return PlanPaper(
        run=str(subject.run),
        name=subject.run.name,
        planner=subject.by,
        policy=options.policy,
        hits=str(hits),
        hits_manifest_sha256=manifest_sha256(hits),
        certificate_sha256=hashlib.sha256(certificate).hexdigest() if certificate else None,
        experiment_end_ns=ended,
        prefix=f"{subject.run.name}-{key}/",
        sources=pinned,
        payload=_below("raw", pinned),
        roots={"raw": str(subject.run)},
    )


def _with_payload(
    plan: PlanPaper, subject: Subject, run: Run, certificate: Certificate | None, *, pool: Pool
) -> PlanPaper:
    """Archive the reduced store, or the rejects alone, where the policy says so."""
    disposition, hits = plan.policy.release.disposition, Path(plan.hits)
    if disposition in (Disposition.KEEP, Disposition.TAPE_RAW):
        return plan
    _, made = read_reduced(hits)
    roots: dict[str, Path] = {}
    if disposition is Disposition.TAPE_REJECTS:
        events = np.flatnonzero(made.decision == Decision.REJECT).astype(np.int64)
        roots |= _stored("rejects", subject, run, events, pool)
    else:
        events = np.setdiff1d(audited_events(made, certificate), made.sample)
        roots |= {"hits": hits, **_stored("audited", subject, run, events, pool)}
    payload = [file for part, root in roots.items() for file in _below(part, pin_files(root))]
    if not payload:
        raise UsageError(f"{subject.run}: no event was rejected, so nothing is to be archived")
    return plan.model_copy(
        update={"payload": tuple(payload), "roots": {k: str(v) for k, v in roots.items()}}
    )


def _stored(
    part: str, subject: Subject, run: Run, events: NDArray[np.int64], pool: Pool
) -> dict[str, Path]:
    """Store events of the run in the evidence folder, if there are any."""
    if not events.size:
        return {}
    out = subject.evidence / f"{part}.zarr"
    store_events(run, events, out=out, pool=pool)
    return {part: out}


def _below(part: str, files: Sequence[PinnedFile]) -> tuple[PinnedFile, ...]:
    return tuple(f.model_copy(update={"path": f"{part}/{f.path}"}) for f in files)


def _write_bag(subject: Subject, plan: PlanPaper) -> None:
    """Write the plan as a bag, which other tools read; nothing here depends on it."""
    folder = subject.evidence / f"plan-{plan.plan_id[:16]}"
    if folder.exists():
        return
    source = folder_of(subject.run)
    write_bag(
        folder,
        files=[FileRecord(path=f.path, size=f.size, sha256=f.sha256) for f in plan.sources],
        source=source,
        run=subject.run,
        info={
            "External-Identifier": plan.prefix.rstrip("/"),
            "External-Description": f"Plan {plan.plan_id} of sfxreduce",
        },
        tag_files={PLAN_FILE: paper_bytes(plan), PACKAGES_FILE: _index(plan)},
    )


def _index(plan: PlanPaper) -> bytes:
    """Which file lies where in which package, for other tools."""
    found = [package.model_dump(mode="json") for package in plan.packages]
    return json.dumps(found, indent=1).encode() + b"\n"


def approve_run(
    subject: Subject, *, role: str = "", token: str = "", policy: Policy | None = None
) -> PlanPaper:
    """Approve a plan.

    Parameters
    ----------
    role : str
        ``pi`` or ``facility``; found in the policy by the account's name, if it is not given.
    token : str
        Beginning of the plan's id, to be sure that it is the right one.
    policy : Policy, optional
        To be compared with that of the plan.

    Raises
    ------
    ArchiveRefused
        If there is no plan, the account that planned it approves it, the role is another account's,
        or the facts no longer hold.
    OutputError
        If this account may not write to the evidence.
    """
    with subject.opened() as (writer, found):
        plan = subject.planned(found, token=token)
        subject.check_policy(plan, policy)
        account = owners.account_name(subject.uid)
        taken = role or _role_of(account, plan.policy)
        _check_approver(subject, account, taken, found)
        paper = ApprovalPaper(
            plan_id=plan.plan_id, by=subject.by, role=taken, at_ns=subject.clock()
        )
        name = f"approvals/{plan.plan_id[:8]}-{paper_id(paper)[:8]}.json"
        writer.write(name, paper_bytes(paper))
        try:
            subject.advance(writer, State.APPROVED)
        except ArchiveRefused as error:
            # The first of two approvals is not refused: the second one is waited for.
            if {refusal.code for refusal in error.refusals} != {"R11"}:
                raise
    return plan


def _role_of(account: str, policy: Policy) -> str:
    if account in ("pi", "facility"):
        return account
    people = {str(role): names for role, names in policy.approvals.people.items()}
    return next((role for role, names in people.items() if account in names), "")


def _check_approver(subject: Subject, account: str, role: str, found: Gathered) -> None:
    if role not in ("", "pi", "facility"):
        raise UsageError(f"archive approve: expected --role pi or facility, found {role!a}")
    planned = found.facts.plan
    if found.policy.approvals.two_person and planned and planned.uid == subject.uid:
        raise ArchiveRefused([refuse("R11", f"the account {account} planned it")])
    if not found.policy.may_act(account, role):
        raise ArchiveRefused([refuse("R11", f"{account} is not named as {role} in the policy")])
