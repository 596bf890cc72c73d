"""What a signed ticket rests on, found out anew by whoever signs; the evidence alone is no ground.

Whoever may write to the evidence can write a whole journal of it, with any receipts, results and
times. What they cannot do is own the files of another account, set back the time at which the
system saw a file change, or bring a file out of an archive that the signer named.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from sfxreduce.archive.evidence.documents import PlanPaper
from sfxreduce.archive.evidence.folder import EvidenceWriter
from sfxreduce.archive.evidence.inspect import (
    audited_events,
    certificate_facts,
    read_reduced,
)
from sfxreduce.archive.evidence.pins import pin_files
from sfxreduce.archive.rules.policy import Disposition
from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal, refuse
from sfxreduce.archive.steps.copies import Copies
from sfxreduce.archive.steps.plan import inspect_again, verify_again
from sfxreduce.archive.tape.backends.lying import LyingBackend
from sfxreduce.archive.tape.recall import check_recall, recall_test
from sfxreduce.audit.certificate import Certificate
from sfxreduce.cluster import Pool
from sfxreduce.cluster.pool import Progress
from sfxreduce.decisions.decide import Decision
from sfxreduce.errors import SfxReduceError
from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_zarr
from sfxreduce.pipeline.verify.frames import CompareJob, differing_events
from sfxreduce.run.run import Run

__all__ = ["judge_anew"]


def judge_anew(
    writer: EvidenceWriter,
    plan: PlanPaper,
    run: Run,
    copies: Copies,
    *,
    pool: Pool,
    progress: Progress,
) -> None:
    """Compare, judge and recall anew what a signed ticket rests on, and write down what was found.

    Raises
    ------
    ArchiveRefused
        If the payload does not hold what may leave the disk, copies do not come back as they were
        archived, or the evidence has no recall test from which the grace period counts.
    """
    hits = Path(plan.hits)
    data = writer.contents().paper("certificate.json")
    if data is not None:
        facts, _ = certificate_facts(data, hits=hits, at_ns=0)
        digest = hashlib.sha256(data).hexdigest()
        writer.append("certificate", certificate=digest, facts=asdict(facts))
    certificate = inspect_again(writer, run, hits)
    verify_again(writer, run, hits, pool=pool, progress=progress)
    found = [
        *_archives(copies),
        *_grace(writer, plan),
        *_payload(plan, run, certificate),
    ]
    found += [] if found else _recall(writer, plan, copies)
    if found:
        raise ArchiveRefused(found)


def _archives(copies: Copies) -> Iterator[Refusal]:
    for backend, _ in copies:
        if isinstance(backend, LyingBackend):
            yield refuse("R22", f"{backend.name} is for rehearsals", remedy="name a real archive")


def _grace(writer: EvidenceWriter, plan: PlanPaper) -> Iterator[Refusal]:
    """The grace period counts from a paper that the system dates; a line may say any time."""
    line = writer.contents().last("recalled", plan_id=plan.plan_id)
    if line is None or writer.contents().owned(str(line.get("paper", ""))) is None:
        yield refuse("R08", "there is no paper of it")


def _payload(plan: PlanPaper, run: Run, certificate: Certificate | None) -> Iterator[Refusal]:
    """Refuse a plan whose payload does not hold what may leave the disk."""
    try:
        problem = _uncovered(plan, run, certificate)
    except SfxReduceError as error:
        problem = str(error)
    if problem:
        yield refuse("R04", f"what is archived is not what may leave the disk: {problem}")


def _uncovered(plan: PlanPaper, run: Run, certificate: Certificate | None) -> str:
    """What of a run is not in its payload; empty if nothing is."""
    disposition = plan.policy.release.disposition
    if disposition in (Disposition.KEEP, Disposition.TAPE_RAW):
        raw = {(f"raw/{file.path}", file.size, file.sha256) for file in plan.sources}
        same = raw == {(file.path, file.size, file.sha256) for file in plan.payload}
        return "" if same else "it is not every file of the run"
    _, made = read_reduced(Path(plan.hits))
    if disposition is Disposition.TAPE_REJECTS:
        stores = {"rejects": np.flatnonzero(made.decision == Decision.REJECT)}
    else:
        stores = {"audited": np.setdiff1d(audited_events(made, certificate), made.sample)}
    for part, events in stores.items():
        if not events.size:
            continue
        root = Path(plan.roots[part])
        store = open_zarr(root)
        index = np.asarray(store.columns["source_index"].values)
        job = CompareJob(
            kept=ZarrFrames(path=str(root)),
            source=run.source,
            first=0,
            source_index=tuple(index.tolist()),
        )
        if not np.array_equal(index, events) or differing_events(job):
            return f"{root} does not hold the {events.size} events that it should"
    roots = {part: Path(root) for part, root in plan.roots.items()}
    there = {
        (f"{part}/{file.path}", file.size, file.sha256)
        for part, root in roots.items()
        for file in pin_files(root)
    }
    if there != {(file.path, file.size, file.sha256) for file in plan.payload}:
        return "the stores on the disk are not what the plan names"
    dropped = disposition is Disposition.DROP_REJECTS
    return (
        "the reduced store is missing" if dropped and roots.get("hits") != Path(plan.hits) else ""
    )


def _recall(writer: EvidenceWriter, plan: PlanPaper, copies: Copies) -> list[Refusal]:
    """Recall files drawn by no one else, into a folder that nobody else can enter."""
    n = plan.policy.release.recall_files
    with output_errors(Path(tempfile.gettempdir())):
        folder = tempfile.TemporaryDirectory(prefix="sfxreduce-recall-")
    with folder as name:
        result = recall_test(
            copies,
            plan.archive_files,
            n=n,
            seed=int.from_bytes(secrets.token_bytes(8), "big"),
            workdir=Path(name),
        )
    writer.append(
        "recalled-again",
        plan_id=plan.plan_id,
        tested=result.tested,
        bad=result.bad,
        statement=result.statement,
    )
    return check_recall(result, plan.archive_files, n=n)
