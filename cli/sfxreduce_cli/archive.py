"""``sfxreduce archive``: bring runs to tape, and prove that they may leave the disk.

Nothing here deletes data. The commands load the library when they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal
from sfxreduce.errors import UsageError
from sfxreduce_cli.archiving import (
    By,
    EvidenceDir,
    ExecuteToken,
    PolicyPath,
    RunPath,
    RunPaths,
    To,
    given_policy,
    nanoseconds,
    print_facts,
    print_runs,
    subject_of,
)
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    Overwrite,
    SchedulerAddress,
    SecurityPath,
    Serial,
    Workers,
    working_pool,
)
from sfxreduce_cli.output import print_json, print_lines, print_summary
from sfxreduce_cli.ticket import check_ticket

__all__ = ["archive"]

archive = typer.Typer(
    help="Bring runs to tape and prove what may leave the disk; nothing here deletes data.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

archive.command("check-ticket")(check_ticket)

Hits = Annotated[
    Path | None, typer.Option("--hits", metavar="PATH", help="The reduced store of the run.")
]
Root = Annotated[Path, typer.Option("--root", metavar="DIR", help="Folder with many runs.")]
LimitRoot = Annotated[
    Path | None,
    typer.Option(
        "--root", metavar="DIR", help="Folder below which all tickets count for the daily limit."
    ),
]


@archive.command("plan")
def plan(
    runs: RunPaths,
    hits: Annotated[
        list[Path] | None,
        typer.Option("--hits", metavar="PATH", help="Reduced stores, in the order of the runs."),
    ] = None,
    policy: PolicyPath = None,
    certificate: Annotated[
        Path | None, typer.Option(help="What 'sfxreduce audit certify' wrote; one run only.")
    ] = None,
    ended: Annotated[
        str, typer.Option(help="End of the experiment; else the youngest file's date.")
    ] = "",
    evidence: EvidenceDir = None,
    by: By = "",
    data_path: DataPath = "",
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Pin runs, compare their reduced stores with them, and plan what goes to tape.

    Example: sfxreduce archive plan run.zarr --hits hits.zarr --as ann
    """
    from sfxreduce.archive.evidence.subject import DEFAULT_PRESET
    from sfxreduce.archive.rules.policy import preset
    from sfxreduce.archive.steps.plan import PlanOptions, plan_run

    stores = hits or []
    if stores and len(stores) != len(runs):
        raise UsageError(f"archive plan: expected {len(runs)} --hits, found {len(stores)}")
    if len(runs) > 1 and (certificate or evidence):
        raise UsageError("archive plan: --certificate and --evidence are for one run")
    rules = given_policy(policy) or preset(DEFAULT_PRESET)
    ended_ns = nanoseconds(ended, option="--ended")
    rows: list[dict[str, Any]] = []
    refusals: list[Refusal] = []
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        for number, run in enumerate(runs):
            subject = subject_of(run, evidence, by)
            options = PlanOptions(
                policy=rules,
                hits=stores[number] if stores else None,
                certificate=certificate,
                ended_ns=ended_ns,
                data_path=data_path,
            )
            try:
                made = plan_run(subject, options, pool=pool, progress=progress)
            except ArchiveRefused as error:
                refusals += error.refusals
                continue
            rows.append(_planned(made, subject))
    if refusals:
        raise ArchiveRefused(refusals)
    print_runs("plans", rows, as_json=as_json)


def _planned(plan: Any, subject: Any) -> dict[str, Any]:
    return {
        "run": plan.run,
        "plan_id": plan.plan_id,
        "planner": plan.planner,
        "policy": plan.policy.name,
        "disposition": str(plan.policy.release.disposition),
        "state": str(subject.folder.read().state),
        "archive_files": len(plan.payload),
        "archive_bytes": sum(file.size for file in plan.payload),
        "parcels": len(plan.parcels),
        "packages": [
            {"name": package.name, "bytes": package.size, "files": len(package.files)}
            for package in plan.packages
        ],
        "release_files": len(plan.sources),
        "release_bytes": plan.release_bytes,
        "evidence": str(subject.evidence),
    }


@archive.command("approve")
def approve(
    run: RunPath,
    by: By = "",
    role: Annotated[str, typer.Option(help="pi or facility, where the policy asks for it.")] = "",
    plan: Annotated[str, typer.Option(help="Beginning of the plan's id, to be sure.")] = "",
    policy: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The plan's policy, to be sure.")
    ] = None,
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Give one's word for a plan; another person than the planner has to.

    Example: sfxreduce archive approve run.zarr --as bob
    """
    from sfxreduce.archive.steps.plan import approve_run

    subject = subject_of(run, evidence, by)
    found = approve_run(subject, role=role, token=plan, policy=given_policy(policy))
    facts = {
        "run": found.run,
        "plan_id": found.plan_id,
        "approved_by": subject.by,
        "state": str(subject.folder.read().state),
    }
    print_facts(f"{run}: approved", facts, as_json=as_json)


@archive.command("execute")
def execute(
    run: RunPath,
    to: To = None,
    token: ExecuteToken = None,
    by: By = "",
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy a plan's files to every pool and take down receipts; without --execute, say what would.

    Example: sfxreduce archive execute run.zarr --to a=posix:/mnt/a --to b=posix:/mnt/b
    --execute 1f0c22aa
    """
    from sfxreduce.archive.steps.execute import execute_run

    done = execute_run(subject_of(run, evidence, by), to=to or (), token=token)
    title = "nothing was copied; this would be" if done.dry_run else "copied"
    print_facts(f"{run}: {title}", done.to_json(), as_json=as_json)


@archive.command("recall-test")
def recall_test(
    run: RunPath,
    n: Annotated[int | None, typer.Option(min=1, help="Files; else the policy's number.")] = None,
    to: To = None,
    by: By = "",
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Stage files back at random and compare them with what was archived.

    Example: sfxreduce archive recall-test run.zarr
    """
    from sfxreduce.archive.steps.execute import recall_run

    subject = subject_of(run, evidence, by)
    found = recall_run(subject, n=n, to=to or ())
    facts = {
        "run": str(subject.run),
        "tested": found.tested,
        "bad": found.bad,
        "statement": found.statement,
        "state": str(subject.folder.read().state),
    }
    print_facts(f"{run}: recalled", facts, as_json=as_json)


@archive.command("release")
def release(
    run: RunPath,
    token: ExecuteToken = None,
    receipt: Annotated[
        Path | None, typer.Option(help="What the facility's tool wrote after it acted.")
    ] = None,
    to: To = None,
    by: By = "",
    evidence: EvidenceDir = None,
    root: LimitRoot = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Private Ed25519 key; else the policy's, if any."),
    ] = None,
    data_path: DataPath = "",
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Write the ticket that lists what may leave the disk; without --execute, say if it could be.

    Example: sfxreduce archive release run.zarr --execute 1f0c22aa
    """
    from sfxreduce.archive.steps.release import record_release, release_run

    subject = subject_of(run, evidence, by, root=root)
    if receipt is not None:
        state = record_release(subject, receipt)
        print_facts(f"{run}: released", {"state": str(state)}, as_json=as_json)
        return
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        done = release_run(
            subject,
            token=token,
            to=to or (),
            data_path=data_path,
            sign_key=sign_key,
            pool=pool,
            progress=progress,
        )
    title = "nothing was written; it could be released" if done.dry_run else "ticket written"
    print_facts(f"{run}: {title}", done.to_json(), as_json=as_json)


@archive.command("restore")
def restore(
    run: RunPath,
    events: Annotated[
        str, typer.Option(help="Ids of events, or @N for position N, divided by commas.")
    ] = "",
    whole: Annotated[bool, typer.Option("--all", help="The whole run, from the archive.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Keep the copy on the disk.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Where it goes.")] = None,
    hits: Hits = None,
    to: To = None,
    by: By = "",
    evidence: EvidenceDir = None,
    overwrite: Overwrite = False,
    serial: Serial = False,
    scheduler: SchedulerAddress = "",
    security: SecurityPath = None,
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Bring events or a run back from disk, reduced store or archive; or call a release off.

    Example: sfxreduce archive restore run.zarr --events @3,@17 --out events.zarr
    """
    from sfxreduce.archive.steps import release as releasing
    from sfxreduce.archive.steps import restore as restoring

    if sum([bool(events), whole, cancel]) != 1:
        raise UsageError("archive restore: expected one of --events, --all and --cancel")
    subject = subject_of(run, evidence, by)
    if cancel:
        state = releasing.cancel_run(subject)
        print_facts(f"{run}: stays on the disk", {"state": str(state)}, as_json=as_json)
        return
    if out is None:
        raise UsageError("archive restore: expected --out PATH")
    if whole:
        n_bytes = restoring.restore_whole_run(subject, out=out, to=to or ())
        facts = {"out": str(out), "bytes_recalled": n_bytes}
        print_facts(f"{out}: restored", facts, as_json=as_json)
        return
    with working_pool(serial=serial, scheduler=scheduler, workers=workers, security=security) as (
        pool,
        progress,
    ):
        found = restoring.restore_run_events(
            subject,
            [name.strip() for name in events.split(",") if name.strip()],
            out=out,
            hits=hits,
            to=to or (),
            pool=pool,
            overwrite=overwrite,
            progress=progress,
        )
    print_facts(f"{out}: restored", found.to_json(), as_json=as_json)


@archive.command("status")
def status(
    runs: Annotated[list[Path] | None, typer.Argument(help="Source runs.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="All runs below a folder.")
    ] = None,
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Say where runs are and what keeps them there; their files are looked at, not read.

    Example: sfxreduce archive status --root /data/experiment
    """
    from sfxreduce.archive.evidence import subject
    from sfxreduce.archive.steps import status as statuses

    if bool(runs) == bool(root):
        raise UsageError("archive status: expected runs, or --root DIR")
    if root is not None:
        found = statuses.summary_of(root, clock=subject.wall_clock)
        print_json(found) if as_json else print_summary(found)
        return
    rows = [statuses.status_of(subject_of(run, evidence, "status")).to_json() for run in runs or ()]
    print_runs("runs", rows, as_json=as_json)


@archive.command("explain")
def explain(run: RunPath, evidence: EvidenceDir = None, as_json: AsJson = False) -> None:
    """Say in sentences where a run is, what is missing, and what its policy asks for.

    Example: sfxreduce archive explain run.zarr
    """
    from sfxreduce.archive.steps.status import explain_run

    told = explain_run(subject_of(run, evidence, "status"))
    if as_json:
        print_json({"run": str(run), "sentences": told})
    else:
        print_lines(told)


@archive.command("nightly")
def nightly(root: Root, as_json: AsJson = False) -> None:
    """Look at all runs below a folder, void what no longer holds, and sum up; writes no ticket.

    Example: sfxreduce archive nightly --root /data/experiment --json
    """
    from sfxreduce.archive.evidence import subject
    from sfxreduce.archive.steps import status as statuses

    found = statuses.nightly(root, clock=subject.wall_clock)
    print_json(found) if as_json else print_summary(found)
