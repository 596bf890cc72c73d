"""No order of commands, changes and crashes leads to a ticket that lacks a condition."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from facts import DAY_NS, GOOD_CERTIFICATE, NOW, PLAN, POLICY, STRICT, approval, good_facts
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from sfxreduce.archive.rules.facts import (
    CertificateFacts,
    Evidence,
    Hold,
    RecallFacts,
    ReceiptFacts,
    SourcePin,
    Verified,
)
from sfxreduce.archive.rules.policy import Disposition, Policy, Release, policy_sha256
from sfxreduce.archive.rules.refusals import REFUSALS, refuse
from sfxreduce.archive.rules.states import ARROWS, PATH, State, next_state, step
from sfxreduce.errors import UsageError

HOUR_NS = DAY_NS // 24
RIGHT_OF_APPROVED = PATH[PATH.index(State.ARCHIVING) :]

FORBIDDEN = {arrow for arrow in pairwise(PATH) if arrow[1] in RIGHT_OF_APPROVED}
"""What a hold forbids: every step towards a release, and none away from it."""

HOLD = Hold(hold_id="h", reason="thesis", authority="pi", by="ann", at_ns=NOW)


def judged(facts: Evidence, policy: Policy = POLICY, *, now_ns: int = NOW) -> set[str]:
    """Codes of the arrow to a ticket."""
    found = step(State.RELEASABLE, facts, policy=policy, now_ns=now_ns, to=State.RELEASE_TICKETED)
    return {refusal.code for refusal in found.refusals}


def store(**changes: Any) -> dict[str, Any]:
    return {"store": replace(good_facts().store, **changes)}  # type: ignore[type-var]


def certificate(**changes: Any) -> dict[str, Any]:
    return {"certificate": replace(GOOD_CERTIFICATE, **changes)}


OF_TICKETS = {"R21", "R22", "R24"}
"""Codes of signing, checking and acting on tickets, which nothing before a ticket is about."""

FAULTS = [
    ("R01", {"verified": None}),
    ("R01", {"verified": Verified(ok=False, at_ns=NOW)}),
    ("R01", {"verified": Verified(ok=True, at_ns=NOW - 8 * DAY_NS)}),
    ("R01", store(same=False)),
    ("R01", {"store": None}),
    ("R02", {"certificate": None}),
    ("R02", certificate(intact=False)),
    ("R02", certificate(fits=False)),
    ("R02", certificate(loss_upper=0.011)),
    ("R02", certificate(loss_upper=float("nan"))),
    ("R02", certificate(confidence=0.9)),
    ("R02", certificate(at_ns=NOW - 366 * DAY_NS)),
    ("R03", {"source": SourcePin.CHANGED}),
    ("R03", {"source": SourcePin.GONE}),
    ("R03", {"source": SourcePin.UNPINNED}),
    ("R04", {"receipts": None}),
    ("R04", {"receipts": ReceiptFacts(plan_id="other", faults=(), oldest_ns=NOW)}),
    ("R04", {"receipts": ReceiptFacts(plan_id="p", faults=(), oldest_ns=NOW - 25 * HOUR_NS)}),
    *(
        (code, {"receipts": ReceiptFacts(plan_id="p", faults=(refuse(code),), oldest_ns=NOW)})
        for code in ("R04", "R05", "R06", "R07")
    ),
    ("R08", {"recall": None}),
    ("R08", {"recall": RecallFacts(plan_id="p", tested=58, bad=0, at_ns=NOW - 90 * DAY_NS)}),
    ("R08", {"recall": RecallFacts(plan_id="p", tested=99, bad=1, at_ns=NOW - 90 * DAY_NS)}),
    ("R08", {"recall": RecallFacts(plan_id="q", tested=99, bad=0, at_ns=NOW - 90 * DAY_NS)}),
    ("R09", {"holds": (HOLD,)}),
    ("R09", {"holds": (replace(HOLD, until_ns=NOW + 1),)}),
    ("R09", {"holds_problem": "/holds: cannot be read"}),
    ("R10", {"tampered": ("journal.jsonl: line 3",)}),
    ("R10", {"missing_holds": ("the hold 1f0c22aa7b31 was taken away",)}),
    ("R10", certificate(intact=False)),
    ("R11", {"plan": None}),
    ("R11", {"plan": replace(PLAN, policy_sha256="other")}),
    ("R11", {"approvals": ()}),
    ("R11", {"approvals": (approval("cy", "pi"),) * 2}),
    # Two names of one account are one person, and the planner is one under any name.
    ("R11", {"approvals": (approval("cy", "pi"), replace(approval("cy", "facility"), by="bob"))}),
    ("R11", {"approvals": tuple(replace(a, uid=1) for a in good_facts().approvals)}),
    (
        "R11",
        {
            "approvals": tuple(
                approval(by, role) for by, role in (("ann", "pi"), ("bob", "facility"))
            )
        },
    ),
    ("R12", {"recall": RecallFacts(plan_id="p", tested=99, bad=0, at_ns=NOW - 29 * DAY_NS)}),
    ("R12", {"experiment_end_ns": NOW - 119 * DAY_NS}),
    ("R12", {"experiment_end_ns": None}),
    ("R13", store(drift_alarm=True)),
    ("R14", store(ledger_complete=False)),
    ("R15", {"released_today_bytes": 50 * 10**12}),
    ("R16", {"unknown": ("plan.json: colour",)}),
    ("R17", {"last_seen_ns": NOW + 1}),
    ("R18", store(undecided_kept=False)),
    ("R18", store(undecided_share=0.06)),
    ("R19", {"open_jobs": ("reprocessing",)}),
    ("R20", store(sampled_share=0.005)),
    ("R20", store(audited_kept=False)),
    ("R20", {"name": "r0012_Dark"}),
]


@pytest.mark.parametrize(("code", "change"), FAULTS)
def test_one_thing_that_is_missing_is_refused_with_its_code(
    code: str, change: dict[str, Any]
) -> None:
    assert not judged(good_facts(), STRICT)
    assert code in judged(replace(good_facts(), **change), STRICT)


def test_every_code_has_a_fault_above() -> None:
    # R23 comes before there are facts of a run: tests/archive/test_linked.py.
    assert {code for code, _ in FAULTS} == set(REFUSALS) - OF_TICKETS - {"R23"}


@pytest.mark.parametrize(
    ("release", "code"),
    [
        ({"disposition": Disposition.KEEP}, "R11"),
        ({"disposition": Disposition.DROP_REJECTS, "allow_irreversible": False}, "R11"),
    ],
)
def test_what_the_policy_keeps_is_not_released(release: dict[str, Any], code: str) -> None:
    policy = Policy(release=Release(**release))
    facts = good_facts()
    assert facts.plan is not None
    own = replace(facts.plan, policy_sha256=policy_sha256(policy))
    assert judged(replace(facts, plan=own), policy) == {code}


@pytest.mark.parametrize(
    "change",
    [{"certificate": None}, store(undecided_share=0.5), store(audited_kept=False)],
)
def test_what_can_be_undone_needs_no_certificate(change: dict[str, Any]) -> None:
    facts = good_facts(policy=POLICY)
    assert not judged(replace(facts, **change), POLICY)


def test_a_false_certificate_is_refused_even_where_none_is_needed() -> None:
    facts = good_facts(policy=POLICY)
    for change, codes in (({"intact": False}, {"R02", "R10"}), ({"fits": False}, {"R02"})):
        assert judged(replace(facts, **certificate(**change)), POLICY) == codes


def test_only_arrows_that_are_drawn_can_be_taken() -> None:
    for before in State:
        for after in State:
            if (before, after) not in ARROWS:
                with pytest.raises(UsageError, match="no arrow leads from"):
                    step(before, good_facts(), policy=POLICY, now_ns=NOW, to=after)


def complete(facts: Evidence, policy: Policy, now: int) -> bool:
    """Everything a ticket needs, said once more and otherwise."""
    r, plan, recall, receipts = policy.release, facts.plan, facts.recall, facts.receipts
    kept, proof = facts.store, facts.certificate
    if plan is None or recall is None or receipts is None or kept is None:
        return False
    if facts.verified is None or facts.experiment_end_ns is None:
        return False
    given = [a for a in facts.approvals if plan.at_ns <= a.at_ns <= now]
    words = {(a.uid, a.role) for a in given if a.plan_id == plan.plan_id}
    words = {(uid, role) for uid, role in words if uid != plan.uid}
    drops = r.disposition is Disposition.DROP_REJECTS
    proved = proof is None or (proof.intact and proof.fits)
    if drops:
        proved = (
            proof is not None
            and proved
            and proof.loss_upper <= r.max_loss
            and proof.confidence >= r.confidence
            and now <= proof.at_ns + r.certificate_days * DAY_NS
            and kept.undecided_share <= r.max_undecided
            and kept.audited_kept
            and r.allow_irreversible
        )
    agreed = any(
        mine[1] == "pi" and yours[1] == "facility" and mine[0] != yours[0]
        for mine in words
        for yours in words
    )
    return all(
        [
            not facts.tampered and not facts.missing_holds and not facts.holds_problem,
            not facts.unknown,
            now >= facts.last_seen_ns,
            facts.source == "same",
            kept.ledger_complete and kept.undecided_kept and kept.same,
            kept.sampled_share >= policy.keep.random_share,
            not (kept.drift_alarm and (drops or policy.drift.on_alarm == "keep-all")),
            facts.verified.ok and now <= facts.verified.at_ns + r.verified_days * DAY_NS,
            proved,
            plan.policy_sha256 == policy_sha256(policy),
            agreed if drops else words,
            receipts.plan_id == plan.plan_id and not receipts.faults,
            now <= receipts.oldest_ns + r.receipt_hours * HOUR_NS,
            recall.plan_id == plan.plan_id and recall.bad == 0,
            recall.tested >= r.recall_files or recall.tested >= plan.n_payload,
            now >= recall.at_ns + r.grace_days * DAY_NS,
            now >= facts.experiment_end_ns + r.min_retention_days * DAY_NS,
            all(h.until_ns is not None and h.until_ns <= now for h in facts.holds),
            not facts.open_jobs,
            facts.released_today_bytes + plan.release_bytes <= r.max_tb_per_day * 10**12,
            "dark" not in facts.name.lower(),
            r.disposition is not Disposition.KEEP,
        ]
    )


SEEN: Counter[str] = Counter()
CODES: Counter[str] = Counter()


class Journey(RuleBasedStateMachine):
    """A run on its way, whose facts change at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = POLICY
        self.facts = Evidence()
        self.now = NOW
        self.state = State.REGISTERED
        self.trail = [State.REGISTERED]

    @rule(strict=st.booleans())
    def begin_well(self, strict: bool) -> None:
        self.policy = STRICT if strict else POLICY
        self.facts = good_facts(policy=self.policy, now_ns=self.now)

    @rule(fault=st.sampled_from(FAULTS), share=st.booleans())
    def spoil(self, fault: tuple[str, dict[str, Any]], share: bool) -> None:
        self.facts = replace(self.facts, **fault[1])

    @rule(name=st.sampled_from(sorted(set(Evidence.__slots__) - {"last_seen_ns"})))
    def mend(self, name: str) -> None:
        good = good_facts(policy=self.policy, now_ns=self.now)
        self.facts = replace(self.facts, **{name: getattr(good, name)})

    @rule(hours=st.sampled_from([1, 12, 30, 24 * 8, 24 * 40, 24 * 400]))
    def wait(self, hours: int) -> None:
        self.now += hours * HOUR_NS

    @rule(back=st.booleans())
    def see_the_clock(self, back: bool) -> None:
        """Whatever is written down moves the time that was seen; and clocks are set back."""
        self.facts = replace(self.facts, last_seen_ns=max(self.now, self.facts.last_seen_ns))
        self.now -= HOUR_NS if back else 0

    @rule(until=st.sampled_from([None, 1, 40 * DAY_NS]))
    def hold(self, until: int | None) -> None:
        end = None if until is None else self.now + until
        self.facts = replace(self.facts, holds=(replace(HOLD, until_ns=end),))

    @rule(n=st.integers(0, 5))
    def turn_off(self, n: int) -> None:
        """Take any arrow that starts here."""
        ends = sorted(end for start, end in ARROWS if start is self.state)
        self._take(ends[n % len(ends)])

    @rule(most=st.integers(1, 14))
    def go_on(self, most: int) -> None:
        """Go as far as it is allowed."""
        for _ in range(most):
            after = next_state(self.state, self.facts, policy=self.policy, now_ns=self.now)
            if after is State.RESTORING or not self._take(after):
                return

    def _take(self, target: State) -> bool:
        found = step(self.state, self.facts, policy=self.policy, now_ns=self.now, to=target)
        again = step(self.state, self.facts, policy=self.policy, now_ns=self.now, to=target)
        assert found == again
        SEEN["judged"] += 1
        CODES.update({refusal.code for refusal in found.refusals})
        if not found.allowed:
            return False
        SEEN["taken"] += 1
        SEEN[target] += 1
        held = self.facts.standing_holds(self.now)
        assert not (held and (self.state, target) in FORBIDDEN)
        if target is State.RELEASE_TICKETED:
            assert complete(self.facts, self.policy, self.now)
        self.state = target
        back = target in PATH and target in self.trail
        self.trail = [*self.trail[: self.trail.index(target) if back else None], target]
        return True

    @invariant()
    def a_ticket_has_the_whole_way_behind_it(self) -> None:
        if self.state is State.RELEASE_TICKETED:
            assert tuple(self.trail) == PATH[: len(self.trail)]

    @invariant()
    def nothing_is_refused_without_a_reason(self) -> None:
        SEEN["steps"] += 1
        found = judged(self.facts, self.policy, now_ns=self.now)
        CODES.update(found)
        assert (not found) == complete(self.facts, self.policy, self.now)


def test_no_path_leads_to_a_ticket_without_every_condition() -> None:
    SEEN.clear()
    CODES.clear()
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Journey,
        settings=settings(
            max_examples=300,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(SEEN), dict(CODES))
    assert SEEN["steps"] >= 10_000
    assert SEEN["taken"] >= 1_000
    assert set(CODES) == set(REFUSALS) - OF_TICKETS - {"R23"}
    assert all(SEEN[state] for state in PATH[1:-1])
    assert SEEN[State.INVALIDATED]
    assert SEEN[State.RESTORED]


@pytest.mark.parametrize("before", RIGHT_OF_APPROVED)
def test_a_hold_wins_wherever_the_run_is(before: State) -> None:
    held = replace(good_facts(), holds=(HOLD,), ticket_plan_id="p", released_plan_id="p")
    for _, after in sorted(arrow for arrow in ARROWS if arrow[0] is before):
        found = step(before, held, policy=STRICT, now_ns=NOW, to=after)
        if (before, after) in FORBIDDEN:
            assert [refusal.code for refusal in found.refusals] == ["R09"]
    passed = replace(held, holds=(replace(HOLD, until_ns=NOW),))
    assert all(
        step(before, passed, policy=STRICT, now_ns=NOW, to=after).allowed
        for start, after in ARROWS
        if start is before and (start, after) in FORBIDDEN
    )


def test_a_source_that_changed_voids_everything_before_the_ticket_and_the_ticket() -> None:
    changed = replace(good_facts(), source=SourcePin.CHANGED)
    gone = replace(good_facts(), source=SourcePin.GONE, ticket_plan_id="p", released_plan_id="p")
    for state in PATH[1:-1]:
        after = next_state(state, changed, policy=STRICT, now_ns=NOW)
        assert after is State.INVALIDATED
        assert step(state, changed, policy=STRICT, now_ns=NOW).allowed
    ticketed = State.RELEASE_TICKETED
    assert next_state(ticketed, gone, policy=STRICT, now_ns=NOW) is State.RELEASED
    assert step(ticketed, gone, policy=STRICT, now_ns=NOW).allowed
    assert next_state(State.GRACE, gone, policy=STRICT, now_ns=NOW) is State.INVALIDATED


def test_a_run_is_released_only_if_the_facility_said_so_and_restored_only_if_it_is_back() -> None:
    facts = replace(good_facts(), ticket_plan_id="p", source=SourcePin.GONE)

    def codes(state: State, facts: Evidence) -> list[str]:
        found = step(state, facts, policy=STRICT, now_ns=NOW)
        return [refusal.code for refusal in found.refusals]

    assert codes(State.RELEASE_TICKETED, facts) == ["R24"]
    assert codes(State.RELEASE_TICKETED, replace(facts, ticket_plan_id="q")) == ["R10"]
    void = replace(facts, ticket_plan_id="", ticket_void="Revoked: held by pi")
    assert codes(State.RELEASE_TICKETED, void) == ["R21"]
    assert codes(State.RELEASED, facts) == []
    assert codes(State.RESTORING, facts) == ["R03"]
    assert codes(State.RESTORING, replace(facts, restored=True)) == []


def test_a_certificate_never_saves_another_run() -> None:
    other = CertificateFacts(intact=True, fits=False, loss_upper=0.0, confidence=0.999, at_ns=NOW)
    assert judged(replace(good_facts(), certificate=other), STRICT) == {"R02"}
