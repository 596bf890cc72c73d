"""``sfxreduce hold``: forbid that a run leaves the disk."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

import sfxreduce
from sfxreduce_cli.archiving import (
    By,
    EvidenceDir,
    PolicyPath,
    RunPath,
    given_policy,
    nanoseconds,
    subject_of,
)
from sfxreduce_cli.options import AsJson, command_group
from sfxreduce_cli.output import print_facts, print_json, print_lines

__all__ = ["hold"]

hold = command_group(
    "Forbid that a run leaves the disk; a hold overrides everything else.",
    example='hold add run.zarr --reason "thesis" --authority pi',
)

Authority = Annotated[str, typer.Option(help="In whose name: pi, facility or legal.")]


@hold.command("add")
def add(
    run: RunPath,
    reason: Annotated[str, typer.Option(help="Why.")],
    authority: Authority,
    until: Annotated[str, typer.Option(help="Date on which it ends by itself.")] = "",
    by: By = "",
    policy: PolicyPath = None,
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Place a hold; it is in force at once and revokes a ticket that was written before.

    Example: sfxreduce hold add run.zarr --reason "thesis" --authority pi
    """
    placed = sfxreduce.archive.add_hold(
        subject_of(run, evidence, by),
        reason=reason,
        authority=authority,
        until_ns=nanoseconds(until, option="--until"),
        policy=given_policy(policy),
    )
    facts = {"run": str(run), "hold_id": placed.hold_id, "authority": authority, "reason": reason}
    print_facts(f"{run}: held", facts, as_json=as_json)


@hold.command("lift")
def lift(
    run: RunPath,
    hold_id: Annotated[str, typer.Argument(help="As 'hold list' shows it.")],
    authority: Authority,
    by: By = "",
    policy: PolicyPath = None,
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """Lift a hold; the authority that placed it can.

    Example: sfxreduce hold lift run.zarr 1f0c22aa7b31 --authority pi
    """
    subject = subject_of(run, evidence, by)
    sfxreduce.archive.lift_hold(subject, hold_id, authority=authority, policy=given_policy(policy))
    print_facts(f"{run}: lifted", {"run": str(run), "hold_id": hold_id}, as_json=as_json)


@hold.command("list")
def list_(
    run: RunPath,
    policy: PolicyPath = None,
    evidence: EvidenceDir = None,
    as_json: AsJson = False,
) -> None:
    """List the holds of a run that were not lifted.

    Example: sfxreduce hold list run.zarr
    """
    subject = subject_of(run, evidence, "status")
    now_ns = subject.clock()
    holds = sfxreduce.archive.list_holds(subject, policy=given_policy(policy))
    rows = [{**asdict(hold), "in_force": hold.stands(now_ns)} for hold in holds]
    if as_json:
        print_json({"run": str(run), "holds": rows})
        return
    print_lines(
        f"{row['hold_id']}  {row['authority']}: {row['reason']} (by {row['by']}"
        f"{'' if row['in_force'] else ', ended'})"
        for row in rows
    )
