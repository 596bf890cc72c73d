"""``sfxreduce archive``: archive runs to tape, and prove that they may leave the disk.

Nothing here deletes data.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

import sfxreduce
from sfxreduce.errors import UsageError
from sfxreduce_cli.archiving import (
    By,
    EvidenceDir,
    ExecuteToken,
    OwnPolicy,
    PolicyPath,
    RunPath,
    RunPaths,
    To,
    archives,
    given_policy,
    nanoseconds,
    subject_of,
)
from sfxreduce_cli.options import (
    AsJson,
    DataPath,
    Overwrite,
    PoolOptions,
    command_group,
    spread_options,
)
from sfxreduce_cli.output import (
    print_facts,
    print_runs,
    print_sentences,
    print_summary,
    say,
    say_next,
    typed,
)

__all__ = ["archive"]

archive = command_group(
    "Archive runs to tape and prove what may leave the disk; nothing here deletes data.",
    example="archive status --root /data/experiment",
)

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


@archive.command("check-ticket")
def check_ticket(
    ticket: Annotated[
        Path, typer.Argument(help="release-ticket.json; its signature is beside it.")
    ],
    key: Annotated[Path, typer.Option("--key", metavar="PUBLIC", help="Ed25519 in PEM.")],
    as_json: AsJson = False,
) -> None:
    """Check whether a site may act on a ticket: signed, in force, not held, files unchanged.

    Example: sfxreduce archive check-ticket run.zarr.evidence/release-ticket.json --key public.pem
    """
    paper = sfxreduce.archive.check_ticket(ticket, key=key)
    ends = datetime.fromtimestamp(paper.valid_until_ns / 1e9, UTC).isoformat(timespec="seconds")
    facts = {
        "ticket": str(ticket),
        "run": paper.run,
        "plan_id": paper.plan_id,
        "policy": paper.policy.named if paper.policy else "",
        "files": len(paper.files),
        "bytes": paper.bytes,
        "valid_until": ends,
    }
    print_facts(f"{ticket}: may be acted on", facts, as_json=as_json)


@archive.command("plan")
@spread_options
def plan(
    *,
    runs: RunPaths,
    hits: Annotated[
        list[Path] | None,
        typer.Option(
            "--hits",
            metavar="PATH",
            help="Reduced stores, in the order of the runs; default: the one beside each run.",
        ),
    ] = None,
    policy: PolicyPath = None,
    certificate: Annotated[
        Path | None, typer.Option(help="What 'sfxreduce audit certify' wrote; one run only.")
    ] = None,
    ended: Annotated[
        str, typer.Option(help="End of the experiment; default: date of the newest file.")
    ] = "",
    evidence: EvidenceDir = None,
    group: Annotated[
        str,
        typer.Option(
            help="Share the evidence with a group: its members add papers, and nobody removes or "
            "replaces those of others."
        ),
    ] = "",
    by: By = "",
    data_path: DataPath = "",
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Pin runs, compare their reduced stores with them, and plan what goes to tape.

    Example: sfxreduce archive plan run.zarr --hits hits.zarr --as ann
    """
    if len(runs) > 1 and evidence:
        raise UsageError("archive plan: --certificate and --evidence are for one run")
    with where.opened() as work:
        planned = sfxreduce.archive.plan_runs(
            [subject_of(run, evidence, by) for run in runs],
            hits=hits or (),
            policy=given_policy(policy),
            certificate=certificate,
            ended_ns=nanoseconds(ended, option="--ended"),
            data_path=data_path,
            group=group,
            **work,
        )
    print_runs("plans", [run.to_json() for run in planned], as_json=as_json)
    say_next("archive", "approve", runs[0], as_json=as_json)


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
    """Approve a plan; the account that planned it cannot, unless its policy lets it.

    Example: sfxreduce archive approve run.zarr --as bob
    """
    subject = subject_of(run, evidence, by)
    approved = sfxreduce.archive.approve_run(
        subject, role=role, token=plan, policy=given_policy(policy)
    )
    facts = {
        "run": approved.run,
        "plan_id": approved.plan_id,
        "approved_by": subject.by,
        "state": str(subject.folder.read().state),
    }
    print_facts(f"{run}: approved", facts, as_json=as_json)
    say_next("archive", "execute", run, "--to", "POOL=ARCHIVE", as_json=as_json)


@archive.command("execute")
def execute(
    run: RunPath,
    to: To = None,
    token: ExecuteToken = None,
    policy: OwnPolicy = None,
    by: By = "",
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Copy a plan's files to every pool and record receipts; without --execute, only say what for.

    Example: sfxreduce archive execute run.zarr --to a=posix:/mnt/a --to b=posix:/mnt/b
    --execute 1f0c22aa
    """
    executed = sfxreduce.archive.execute_run(
        subject_of(run, evidence, by), token=token, **archives(to, policy)
    )
    title = "nothing was copied; this would be" if executed.dry_run else "copied"
    print_facts(f"{run}: {title}", executed.to_json(), as_json=as_json)
    if executed.dry_run:
        say(f"to do it: {typed('--execute', executed.plan.plan_id[:8])}")
    else:
        say_next("archive", "recall-test", run, *_same(to, policy), as_json=as_json)


def _same(to: list[str] | None, policy: Path | None) -> list[object]:
    """Options that name the same archives once more."""
    named = [word for one in to or () for word in ("--to", one)]
    return [*named, *(["--policy", policy] if policy else [])]


@archive.command("recall-test")
def recall_test(
    run: RunPath,
    n: Annotated[
        int | None, typer.Option(min=1, help="Number of files; default: as the policy says.")
    ] = None,
    to: To = None,
    policy: OwnPolicy = None,
    by: By = "",
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Stage random files back and compare them with what was archived.

    Example: sfxreduce archive recall-test run.zarr --to a=posix:/mnt/a --to b=posix:/mnt/b
    """
    subject = subject_of(run, evidence, by)
    recalled = sfxreduce.archive.recall_run(subject, n=n, **archives(to, policy))
    facts = {
        "run": str(subject.run),
        "tested": recalled.tested,
        "bad": recalled.bad,
        "statement": recalled.statement,
        "state": str(subject.folder.read().state),
    }
    print_facts(f"{run}: recalled", facts, as_json=as_json)
    say_next("archive", "release", run, *_same(to, policy), as_json=as_json)


@archive.command("release")
@spread_options
def release(
    *,
    run: RunPath,
    token: ExecuteToken = None,
    receipt: Annotated[
        Path | None, typer.Option(help="What the facility's tool wrote after it acted.")
    ] = None,
    to: To = None,
    policy: OwnPolicy = None,
    by: By = "",
    evidence: EvidenceDir = None,
    root: LimitRoot = None,
    sign_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Private Ed25519 key; default: the one of --policy. Signing needs --policy, and "
            "recalls files again.",
        ),
    ] = None,
    data_path: DataPath = "",
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Write the ticket that lists what may leave the disk; without --execute, only check.

    Example: sfxreduce archive release run.zarr --policy site.toml --execute 1f0c22aa
    """
    subject = subject_of(run, evidence, by, root=root)
    if receipt is not None:
        state = sfxreduce.archive.record_release(subject, receipt)
        print_facts(f"{run}: released", {"state": str(state)}, as_json=as_json)
        return
    with where.opened() as work:
        own: dict[str, Any] = {**archives(to, policy), "data_path": data_path, "sign_key": sign_key}
        released = sfxreduce.archive.release_run(subject, token=token, **own, **work)
    title = "nothing was written; it could be released" if released.dry_run else "ticket written"
    print_facts(f"{run}: {title}", released.to_json(), as_json=as_json)
    if released.dry_run:
        say(f"to do it: {typed('--execute', released.plan.plan_id[:8])}")
    else:
        say_next("archive", "status", run, as_json=as_json)


@archive.command("restore")
@spread_options
def restore(
    *,
    run: RunPath,
    events: Annotated[
        str, typer.Option(help="Ids of events, or @N for position N, separated by commas.")
    ] = "",
    whole: Annotated[bool, typer.Option("--all", help="The whole run, from the archive.")] = False,
    cancel: Annotated[bool, typer.Option("--cancel", help="Keep the copy on the disk.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="PATH", help="Where it goes.")] = None,
    hits: Hits = None,
    to: To = None,
    policy: OwnPolicy = None,
    by: By = "",
    evidence: EvidenceDir = None,
    overwrite: Overwrite = False,
    where: PoolOptions,
    as_json: AsJson = False,
) -> None:
    """Bring events or a run back from disk, reduced store or archive; or call a release off.

    Example: sfxreduce archive restore run.zarr --events @3,@17 --out events.zarr
    """
    target = _target(run, out, events=bool(events), whole=whole, cancel=cancel)
    subject, places = subject_of(run, evidence, by), archives(to, policy)
    if cancel:
        facts: dict[str, object] = {"state": str(sfxreduce.archive.cancel_run(subject))}
    elif whole:
        n_bytes = sfxreduce.archive.restore_run(subject, out=target, **places)
        facts = {"out": str(target), "bytes_recalled": n_bytes}
    else:
        names = [name.strip() for name in events.split(",") if name.strip()]
        with where.opened() as work:
            restored = sfxreduce.archive.restore_run_events(
                subject, names, out=target, hits=hits, overwrite=overwrite, **places, **work
            )
        facts = asdict(restored)
    print_facts(f"{target}: {'kept' if cancel else 'restored'}", facts, as_json=as_json)


def _target(run: Path, out: Path | None, *, events: bool, whole: bool, cancel: bool) -> Path:
    """Where events or a run go; where the run is already, if its release is called off."""
    if sum([events, whole, cancel]) != 1:
        raise UsageError("archive restore: expected one of --events, --all and --cancel")
    if out is None and not cancel:
        raise UsageError("archive restore: expected --out PATH")
    return run if out is None or cancel else out


@archive.command("status")
def status(
    runs: Annotated[list[Path] | None, typer.Argument(help="Source runs.")] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="All runs below a folder.")
    ] = None,
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Show where runs are and what keeps them there, without reading their files.

    Example: sfxreduce archive status --root /data/experiment
    """
    if bool(runs) == bool(root):
        raise UsageError("archive status: expected runs, or --root DIR")
    if root is not None:
        print_summary(sfxreduce.archive.status_runs(root), as_json=as_json)
        return
    subjects = [subject_of(run, evidence, "status") for run in runs or ()]
    rows = [sfxreduce.archive.status_run(subject).to_json() for subject in subjects]
    print_runs("runs", rows, as_json=as_json)


@archive.command("explain")
def explain(run: RunPath, evidence: EvidenceDir = None, as_json: AsJson = False) -> None:
    """Explain where a run is, what is missing, and what its policy asks for.

    Example: sfxreduce archive explain run.zarr
    """
    sentences = sfxreduce.archive.explain_run(subject_of(run, evidence, "status"))
    print_sentences(sentences, of={"run": str(run)}, as_json=as_json)


@archive.command("nightly")
def nightly(root: Root, as_json: AsJson = False) -> None:
    """Check all runs below a folder, void what no longer holds, and sum up; writes no ticket.

    Example: sfxreduce archive nightly --root /data/experiment --json
    """
    print_summary(sfxreduce.archive.nightly_runs(root), as_json=as_json)
