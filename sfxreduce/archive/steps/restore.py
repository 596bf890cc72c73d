"""Bring events, or a whole run, back from wherever they are."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sfxreduce.archive.evidence.advance import arrow
from sfxreduce.archive.evidence.documents import PlanPaper
from sfxreduce.archive.evidence.folder import Contents
from sfxreduce.archive.evidence.pins import pin_files
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.states import State
from sfxreduce.archive.steps.copies import Copies, copies_of, open_copies
from sfxreduce.archive.steps.packing import tars_of
from sfxreduce.archive.steps.restore_events import Places, Restored, restore_events
from sfxreduce.archive.tape.holding import Holding, fetch_files
from sfxreduce.cluster import IN_PROCESS, Pool
from sfxreduce.cluster.pool import Progress, silent
from sfxreduce.errors import RunNotFound, SourceError, UsageError, VerificationError
from sfxreduce.io.writers.publish import check_outputs, staged

__all__ = ["restore_run", "restore_run_events"]


def restore_run_events(
    subject: Subject,
    events: Sequence[str],
    *,
    out: Path,
    hits: Path | None = None,
    to: Sequence[str] = (),
    pool: Pool = IN_PROCESS,
    overwrite: bool = False,
    progress: Progress = silent,
    policy: Policy | None = None,
) -> Restored:
    """Bring events back by their ids; see `restore_events`. The run counts as in use meanwhile.

    Parameters
    ----------
    to : sequence of str
        Archives; without any, and without a policy that names some, only what is on the disk comes
        back.
    policy : Policy, optional
        The caller's own.

    Raises
    ------
    SourceError
        If an event is nowhere.
    """

    def restored(
        plan: PlanPaper | None = None, archive: Holding | None = None, data_path: str = ""
    ) -> Restored:
        return restore_events(
            events,
            places=_places(subject, plan, hits, archive, data_path=data_path),
            out=out,
            pool=pool,
            overwrite=overwrite,
            progress=progress,
        )

    if not subject.begun:
        return restored()
    with subject.opened() as (writer, found):
        archive = _holding(found.plan, found.contents, to, policy)
        job = uuid.uuid4().hex[:12]
        writer.append("job-began", job=job, what="restore")
        try:
            return restored(found.plan, archive, _data_path(found.contents))
        except SourceError as error:
            if archive is None and found.contents.last("asked"):
                raise SourceError(
                    f"{error}; no archive was asked: name it with --to POOL=ARCHIVE, or your own "
                    "policy with --policy"
                ) from error
            raise
        finally:
            writer.append("job-ended", job=job)


def _places(
    subject: Subject,
    plan: PlanPaper | None,
    hits: Path | None,
    archive: Holding | None,
    *,
    data_path: str,
) -> Places:
    store = hits or (Path(plan.hits) if plan else None)
    return Places(
        run=(subject.run,) if subject.run.exists() else (),
        hits=store if store is not None and store.exists() else None,
        archive=archive,
        data_path=data_path,
    )


def _data_path(contents: Contents) -> str:
    """Path of the frames within the run's files, as it was planned with."""
    read_with = contents.last("read-with")
    return "" if read_with is None else str(read_with["data_path"])


def _holding(
    plan: PlanPaper | None, contents: Contents, to: Sequence[str], policy: Policy | None
) -> Holding | None:
    """What the archive holds, if it holds anything that events can be read from, and is named."""
    asked = contents.last("asked")
    if plan is None or asked is None or not (to or (policy and policy.pools)):
        return None
    part = next(part for part in ("raw", "rejects", "hits") if part in plan.roots)
    held = _part(plan, part, open_copies(copies_of(to, policy=policy)))
    # What was stored of the run is a run store, whatever the run itself is.
    return replace(held, data_path=_data_path(contents)) if part == "raw" else held


def _part(plan: PlanPaper, part: str, copies: Copies) -> Holding:
    files = plan.files_below(part)
    # A run of one file has its own name among those of what it leads to.
    own = Path(plan.roots[part]).name
    return Holding(
        files=files,
        copies=copies,
        prefix=f"{plan.prefix}{part}/",
        packages=tars_of(plan, part),
        opened=own if any(file.path == own for file in files) else "",
    )


def restore_run(
    subject: Subject, *, out: Path, to: Sequence[str] = (), policy: Policy | None = None
) -> int:
    """Bring a raw run back from the archive, every file compared with its checksum.

    Parameters
    ----------
    out : Path
        Folder that takes the files of the run; nothing may lie there.
    policy : Policy, optional
        The caller's own, which names the archives if `to` does not.

    Returns
    -------
    int
        Bytes that were recalled.

    Raises
    ------
    UsageError
        If the raw run is not what was archived.
    VerificationError
        If it is not back as it was.
    """
    with subject.opened() as (writer, found):
        plan, state = found.plan, found.contents.state
        if plan is None or found.contents.last("asked") is None:
            raise RunNotFound(f"{subject.run}: was not archived; there is nothing to restore")
        if set(plan.roots) != {"raw"}:
            raise UsageError(f"{subject.run}: its raw run was not archived; restore single events")
        if state is State.RELEASED:
            state = arrow(writer, state, State.RESTORING)
        copies = open_copies(copies_of(to, policy=policy))
        holding = _part(plan, "raw", copies)
        check_outputs(stores=[out], inputs=[subject.run])
        with staged(stores=[out]) as hidden:
            folder = hidden[out]
            folder.mkdir()
            n_bytes = fetch_files(holding, [f.path for f in holding.files], into=folder)
            back = {(f.path, f.size, f.sha256) for f in pin_files(folder)}
            if back != {(f.path, f.size, f.sha256) for f in plan.sources}:
                raise VerificationError(f"{out}: what came back is not the run that was archived")
        writer.append("restored", plan_id=plan.plan_id, bytes=n_bytes, out=str(out))
        if state is State.RESTORING:
            arrow(writer, state, State.RESTORED)
    return n_bytes
