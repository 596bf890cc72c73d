"""Facts of a run that has all it needs to be released, to be spoiled one by one."""

from __future__ import annotations

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
from sfxreduce.archive.rules.policy import Disposition, Policy, Release, policy_sha256

DAY_NS = 86_400 * 10**9
NOW = 1_800_000_000 * 10**9

POLICY = Policy(release=Release(disposition=Disposition.TAPE_RAW))
"""Raw to tape."""

STRICT = Policy(release=Release(disposition=Disposition.DROP_REJECTS, allow_irreversible=True))
"""Rejects are dropped, so everything is asked for."""

PLAN = PlanFacts(
    plan_id="p",
    planner="ann",
    uid=1,
    policy_sha256=policy_sha256(STRICT),
    at_ns=NOW - 100 * DAY_NS,
    n_payload=200,
    release_bytes=10**12,
)

GOOD_CERTIFICATE = CertificateFacts(
    intact=True, fits=True, loss_upper=0.009, confidence=0.95, at_ns=NOW - 100 * DAY_NS
)


UIDS = {"ann": 1, "bob": 2, "cy": 3}


def approval(by: str, role: str, *, at_ns: int = NOW) -> Approval:
    """An approval by an account of this name."""
    return Approval(by=by, uid=UIDS[by], account=by, role=role, plan_id="p", at_ns=at_ns)


def good_facts(*, policy: Policy = STRICT, now_ns: int = NOW) -> Evidence:
    """Nothing is missing."""
    then = now_ns - 100 * DAY_NS
    return Evidence(
        name="r0042",
        source=SourcePin.SAME,
        experiment_end_ns=now_ns - 150 * DAY_NS,
        store=StoreFacts(
            ledger_complete=True,
            undecided_kept=True,
            undecided_share=0.01,
            sampled_share=0.01,
            audited_kept=True,
            drift_alarm=False,
            kept_incomplete=0,
        ),
        verified=Verified(ok=True, at_ns=now_ns),
        certificate=CertificateFacts(
            intact=True, fits=True, loss_upper=0.009, confidence=0.95, at_ns=then
        ),
        plan=PlanFacts(
            plan_id="p",
            planner="ann",
            uid=1,
            policy_sha256=policy_sha256(policy),
            at_ns=then,
            n_payload=200,
            release_bytes=10**12,
        ),
        approvals=(
            approval("bob", "pi", at_ns=then),
            approval("cy", "facility", at_ns=then),
        ),
        receipts=ReceiptFacts(plan_id="p", faults=(), oldest_ns=now_ns),
        recall=RecallFacts(plan_id="p", tested=59, bad=0, at_ns=now_ns - 40 * DAY_NS),
    )
