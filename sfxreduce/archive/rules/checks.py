"""Single conditions on the way to a release: each looks at the facts and refuses, or does not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch

from sfxreduce.archive.rules.facts import Approval, Evidence, SourcePin, StoreFacts
from sfxreduce.archive.rules.policy import Disposition, Policy, policy_sha256
from sfxreduce.archive.rules.refusals import Refusal, refuse

__all__ = [
    "Case",
    "approved",
    "archived",
    "certified",
    "fresh",
    "held",
    "ledger",
    "may_go",
    "planned",
    "recalled",
    "reduced",
    "released",
    "restored",
    "sound",
    "ticketed",
    "verified",
    "waited",
    "was_verified",
]

DAY_NS = 86_400 * 10**9
HOUR_NS = 3_600 * 10**9
TB = 10**12
NEW_TICKET = (
    "once no hold stands, write a new ticket with 'sfxreduce archive release'; the plan is as good "
    "as before"
)

Found = Iterator[Refusal]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a condition looks at.

    Parameters
    ----------
    now_ns : int
        Nanoseconds since 1970.
    """

    facts: Evidence
    policy: Policy
    now_ns: int


def sound(case: Case) -> Found:
    """Refuse evidence that is not to be trusted, or a clock that is not."""
    for what in case.facts.tampered:
        yield refuse("R10", what)
    for what in case.facts.missing_holds:
        yield refuse("R10", what, remedy="ask who placed it; it is lifted, never removed")
    if case.facts.certificate and not case.facts.certificate.intact:
        yield refuse("R10", "the certificate is not as it was made")
        yield refuse("R02", "the one given is not valid for this run")
    for what in case.facts.unknown:
        yield refuse("R16", what)
    if case.now_ns < case.facts.last_seen_ns:
        behind = (case.facts.last_seen_ns - case.now_ns) / 1e9
        yield refuse("R17", f"by {behind:,.0f} s")


def held(case: Case) -> Found:
    """Refuse while anybody forbids it."""
    for hold in case.facts.standing_holds(case.now_ns):
        yield refuse("R09", f"{hold.authority}: {hold.reason}")
    if case.facts.holds_problem:
        yield refuse(
            "R09",
            f"whether one does is not known: {case.facts.holds_problem}",
            remedy="mend the folder of the holds, or ask its owner to",
        )


def ledger(case: Case) -> Found:
    """Refuse a run whose events are not all accounted for."""
    if case.facts.store is None:
        yield refuse("R01", "there is no reduced store")
    elif not case.facts.store.ledger_complete:
        yield refuse("R14")


def reduced(case: Case) -> Found:
    """Refuse a reduced store that lacks what has to stay."""
    if case.facts.store is None:
        return
    if not case.facts.store.undecided_kept:
        yield refuse("R18", "some are missing")
    yield from _incomplete(case.facts.store, case.policy.release.disposition)
    if case.facts.store.sampled_share < case.policy.keep.random_share:
        yield refuse(
            "R20",
            f"{case.facts.store.sampled_share:.3%} of the rejects are, "
            f"{case.policy.keep.random_share:.3%} have to be",
        )
    if not case.facts.store.audited_kept and case.policy.release.disposition.irreversible:
        yield refuse("R20", "events that were audited", remedy="plan again, which stores them")


def _incomplete(store: StoreFacts, disposition: Disposition) -> Found:
    """Refuse to let go of raw frames of which nothing else holds all pixels."""
    if disposition in (Disposition.KEEP, Disposition.TAPE_RAW) or store.kept_incomplete == 0:
        return
    if store.kept_incomplete is None:
        yield refuse("R18", "how many are whole is not known", remedy="plan again")
    else:
        yield refuse(
            "R18",
            f"{store.kept_incomplete:,} are there without all of their pixels",
            remedy="archive the raw run ('tape-raw'), or filter it again once it can be read",
        )


def was_verified(case: Case) -> Found:
    """Refuse a store that was never found to agree with the run, or is another one by now."""
    if case.facts.verified is None:
        yield refuse("R01")
    elif not case.facts.verified.ok:
        yield refuse("R01", "they differ", remedy="filter the run again; do not release anything")
    elif case.facts.store is not None and not case.facts.store.same:
        yield refuse("R01", "the store changed since")


def verified(case: Case) -> Found:
    """Refuse a store that was not compared with the run lately."""
    yield from was_verified(case)
    if (
        case.facts.verified
        and case.now_ns - case.facts.verified.at_ns > case.policy.release.verified_days * DAY_NS
    ):
        yield refuse("R01", f"{_days(case.now_ns - case.facts.verified.at_ns)} ago, too long")


def certified(case: Case) -> Found:
    """Refuse to lose rejects without proof; and to release after an alarm."""
    irreversible = case.policy.release.disposition.irreversible
    if (
        case.facts.store
        and case.facts.store.drift_alarm
        and (irreversible or case.policy.drift.on_alarm == "keep-all")
    ):
        yield refuse("R13")
    if case.facts.certificate is not None and not (
        case.facts.certificate.intact and case.facts.certificate.fits
    ):
        # Nobody has to give a certificate for what can be undone, but nobody may give a false one.
        yield refuse("R02", "the one given is not valid for this run")
    if not irreversible:
        return
    if case.facts.store and case.facts.store.undecided_share > case.policy.release.max_undecided:
        yield refuse("R18", f"{case.facts.store.undecided_share:.2%} could not be judged")
    yield from _certificate(case)


def _certificate(case: Case) -> Found:
    release = case.policy.release
    if case.facts.certificate is None:
        yield refuse("R02", "there is none")
        return
    if case.now_ns - case.facts.certificate.at_ns > release.certificate_days * DAY_NS:
        yield refuse("R02", "it expired")
    proved = case.facts.certificate
    if not (proved.loss_upper <= release.max_loss and proved.confidence >= release.confidence):
        yield refuse(
            "R02",
            f"it proves a loss of at most {proved.loss_upper:.3%} with {proved.confidence:.4g} "
            f"confidence, {release.max_loss:.3%} with {release.confidence:.4g} are asked for",
        )


def planned(case: Case) -> Found:
    """Refuse a run that is not pinned, or is not what was pinned."""
    if case.facts.source is SourcePin.UNPINNED:
        yield refuse("R03", "it was never pinned", remedy="run 'sfxreduce archive plan'")
    elif case.facts.source is not SourcePin.SAME:
        yield refuse("R03", f"it is {case.facts.source}")
    if case.facts.plan is None:
        yield refuse("R11", "there is no plan", remedy="run 'sfxreduce archive plan'")


def approved(case: Case) -> Found:
    """Refuse what was not approved by those who have to, or under another policy."""
    if case.facts.plan is None:
        return
    if case.facts.plan.policy_sha256 != policy_sha256(case.policy):
        yield refuse("R11", "the plan was made under another policy", remedy="plan again")
    given = [
        a
        for a in case.facts.approvals
        if a.plan_id == case.facts.plan.plan_id and case.facts.plan.at_ns <= a.at_ns <= case.now_ns
    ]
    given = [a for a in given if case.policy.may_act(a.account, a.role)]
    others = [a for a in given if a.uid != case.facts.plan.uid]
    if case.policy.release.disposition.irreversible:
        yield from _two_roles(others)
    elif not (others if case.policy.approvals.two_person else given):
        yield refuse(
            "R11",
            f"{len(others)} by other accounts than the planner's, which is "
            f"{case.facts.plan.planner}'s number {case.facts.plan.uid}",
        )


def _two_roles(given: list[Approval]) -> Found:
    pis = {a.uid for a in given if a.role == "pi"}
    facility = {a.uid for a in given if a.role == "facility"}
    if not (pis and facility and len(pis | facility) > 1):
        yield refuse("R11", "what cannot be undone needs one as pi and another one as facility")


def may_go(case: Case) -> Found:
    """Refuse what the policy never lets go."""
    disposition = case.policy.release.disposition
    if disposition is Disposition.KEEP:
        yield refuse("R11", "the policy keeps everything", remedy="nothing is to be done")
    if disposition.irreversible and not case.policy.release.allow_irreversible:
        yield refuse(
            "R11",
            "the policy does not allow what cannot be undone",
            remedy="set allow_irreversible in the policy, if this is meant",
        )
    if any(
        fnmatch(case.facts.name.lower(), pattern.lower()) for pattern in case.policy.keep.dark_names
    ):
        yield refuse(
            "R20", f"{case.facts.name} is a dark or calibration run", remedy="keep the run"
        )


def archived(case: Case) -> Found:
    """Refuse files that the archive does not hold as the policy asks."""
    if (
        case.facts.receipts is None
        or case.facts.plan is None
        or case.facts.receipts.plan_id != case.facts.plan.plan_id
    ):
        yield refuse("R04", "the archive was not asked yet")
    else:
        yield from case.facts.receipts.faults


def recalled(case: Case) -> Found:
    """Refuse files that were not staged back and compared."""
    if (
        case.facts.plan is None
        or case.facts.recall is None
        or case.facts.recall.plan_id != case.facts.plan.plan_id
    ):
        yield refuse("R08")
    elif case.facts.recall.bad:
        yield refuse(
            "R08", f"{case.facts.recall.bad} of {case.facts.recall.tested} files came back changed"
        )
    elif case.facts.recall.tested < min(
        case.policy.release.recall_files, case.facts.plan.n_payload
    ):
        yield refuse("R08", f"files tested so far: {case.facts.recall.tested}")


def waited(case: Case) -> Found:
    """Refuse while data have to stay."""
    release = case.policy.release
    if case.facts.recall and case.now_ns - case.facts.recall.at_ns < release.grace_days * DAY_NS:
        yield refuse(
            "R12",
            f"grace period of {release.grace_days:g} days, until "
            f"{_date(case.facts.recall.at_ns + int(release.grace_days * DAY_NS))}; "
            f"{_days(case.now_ns - case.facts.recall.at_ns)} have passed",
        )
    if case.facts.experiment_end_ns is None:
        yield refuse("R12", "when the experiment ended is not known")
    elif case.now_ns - case.facts.experiment_end_ns < release.min_retention_days * DAY_NS:
        passed = _days(case.now_ns - case.facts.experiment_end_ns)
        yield refuse(
            "R12",
            f"at least {release.min_retention_days:g} days after the end of the experiment; "
            f"{passed} have passed",
        )


def fresh(case: Case) -> Found:
    """Refuse old receipts, runs in use, and more than a day's worth."""
    if (
        case.facts.receipts
        and case.now_ns - case.facts.receipts.oldest_ns
        > case.policy.release.receipt_hours * HOUR_NS
    ):
        yield refuse("R04", "the archive was not asked lately")
    for job in case.facts.open_jobs:
        yield refuse("R19", job)
    if case.facts.limit_problem:
        yield refuse(
            "R15",
            f"how much is not known: {case.facts.limit_problem}",
            remedy="name the folder that holds the evidence of all runs with --root",
        )
    most = case.policy.release.max_tb_per_day * TB
    if case.facts.plan and case.facts.released_today_bytes + case.facts.plan.release_bytes > most:
        total = (case.facts.released_today_bytes + case.facts.plan.release_bytes) / TB
        yield refuse("R15", f"{total:.3f} of {case.policy.release.max_tb_per_day:g} TB")


def ticketed(case: Case) -> Found:
    """Refuse a release that no ticket of this plan stands behind."""
    if case.facts.plan is None or case.facts.ticket_plan_id != case.facts.plan.plan_id:
        if case.facts.ticket_void:
            yield refuse("R21", case.facts.ticket_void, remedy=NEW_TICKET)
        else:
            yield refuse("R10", "no ticket of this plan was written")


def released(case: Case) -> Found:
    """Refuse to believe in a release that the facility did not report."""
    no_ticket = tuple(ticketed(case))
    yield from no_ticket
    plan = case.facts.plan
    if not no_ticket and plan is not None and case.facts.released_plan_id != plan.plan_id:
        yield refuse("R24")


def restored(case: Case) -> Found:
    """Refuse to call a run restored that is not back as it was."""
    if not case.facts.restored:
        yield refuse("R03", "it is not back yet", remedy="run 'sfxreduce archive restore --all'")


def _date(ns: int) -> str:
    return datetime.fromtimestamp(ns / 1e9, UTC).isoformat(timespec="seconds")


def _days(ns: int) -> str:
    return f"{ns / DAY_NS:.1f} days"
