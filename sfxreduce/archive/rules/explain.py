"""A policy in plain sentences."""

from __future__ import annotations

from sfxreduce.archive.rules.policy import Disposition, Policy

__all__ = ["explain_policy"]

WHAT_GOES = {
    Disposition.KEEP: "Nothing leaves the disk.",
    Disposition.TAPE_RAW: (
        "The raw run may leave the disk once it lies on tape; every event of it can be restored."
    ),
    Disposition.TAPE_REJECTS: (
        "The rejected events go to tape in a store of their own, and the raw run may leave the "
        "disk; every event can be restored, from that store or from the reduced one."
    ),
    Disposition.DROP_REJECTS: (
        "The raw run may leave the disk and only the reduced store goes to tape: rejected events "
        "are gone for good."
    ),
}


def explain_policy(policy: Policy) -> list[str]:
    """Say what a policy asks for, one sentence after the other.

    Examples
    --------
    >>> explain_policy(Policy())[0]
    "Policy 'unnamed': Nothing leaves the disk."
    """
    release = policy.release
    told = [f"Policy '{policy.name}': {WHAT_GOES[release.disposition]}"]
    told += [f"Caution: {policy.caution}."] if policy.caution else []
    if release.disposition is not Disposition.KEEP:
        told += [*_proofs(policy), *_copies(policy), *_waits(policy), _people(policy)]
    return [*told, *_stays(policy), *_sources(policy)]


def _proofs(policy: Policy) -> list[str]:
    release = policy.release
    told = [
        "The reduced store must have been compared with the run, bit for bit, at most "
        f"{release.verified_days:g} days before the release."
    ]
    if release.disposition.irreversible:
        told += [
            f"A certificate, at most {release.certificate_days:g} days old, must prove with "
            f"{release.confidence:.4g} confidence that at most {release.max_loss:.4g} of the hits "
            "are lost.",
            f"At most {release.max_undecided:.4g} of the events may be undecided.",
            "This is allowed."
            if release.allow_irreversible
            else "This is refused, because allow_irreversible is false.",
        ]
    alarm = "nothing is released" if policy.drift.on_alarm == "keep-all" else "no reject is dropped"
    return [*told, f"After an alarm of the run-similarity check {alarm}."]


def _copies(policy: Policy) -> list[str]:
    release = policy.release
    where = " in as many pools" if release.distinct_pools and release.copies > 1 else ""
    pools = f" ({', '.join(sorted(policy.pools))})" if policy.pools else ""
    return [
        f"The archive must hold {release.copies} copies of every file{where}{pools}, on tape, with "
        "the checksum of the file, and must have said so at most "
        f"{release.receipt_hours:g} hours before the release.",
        _packages(release.package_gb),
        f"{release.recall_files} packages and files drawn at random (all, if there are fewer) must "
        "have been staged back and compared.",
    ]


def _packages(size_gb: float) -> str:
    if not size_gb:
        return "Every file goes to the archive as it is."
    return (
        f"Files smaller than {size_gb / 10:g} GB go to the archive in packages of about "
        f"{size_gb:g} GB."
    )


def _waits(policy: Policy) -> list[str]:
    release = policy.release
    signed = [f"Release tickets are signed with {release.sign_key}."] if release.sign_key else []
    return [
        *signed,
        f"Data stay {release.grace_days:g} days after the recall test, and at least "
        f"{release.min_retention_days:g} days after the end of the experiment.",
        f"At most {release.max_tb_per_day:g} TB are released in a day, counting "
        + (f"all runs below {release.limit_root}." if release.limit_root else "runs side by side."),
    ]


def _people(policy: Policy) -> str:
    if policy.release.disposition.irreversible:
        return "Two accounts other than the planner's must approve, one as pi and one as facility."
    if policy.approvals.two_person:
        return "Another account than the planner's must approve."
    return "One approval is enough, and the planner may give it."


def _stays(policy: Policy) -> list[str]:
    keep, holds = policy.keep, policy.holds
    lifted = "the account that placed it" if holds.lift_by_same else "any of them"
    where = holds.holds_root or "the evidence, which its planner owns"
    return [
        "Undecided events and audited events are always kept, and so are "
        f"{keep.random_share:.4g} of the rejected events, drawn at random.",
        f"Dark and calibration runs ({', '.join(keep.dark_names)}) are never released.",
        f"A hold of {', '.join(holds.authorities)} stops everything; {lifted} can lift it.",
        f"Holds lie in {where}.",
    ]


def _sources(policy: Policy) -> list[str]:
    return [f"Source: {source.says} [{source.where}]" for source in policy.sources]
