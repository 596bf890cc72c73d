"""What is known about one run on its way to the archive: plain facts, and when each was found.

Times are nanoseconds since 1970. Whatever is not known has the value that forbids most.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sfxreduce.archive.rules.refusals import Refusal

__all__ = [
    "Approval",
    "CertificateFacts",
    "Evidence",
    "Hold",
    "PlanFacts",
    "RecallFacts",
    "ReceiptFacts",
    "SourcePin",
    "StoreFacts",
    "Verified",
]


class SourcePin(StrEnum):
    """How the source run compares with what was pinned."""

    UNPINNED = "unpinned"
    SAME = "same"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """The reduced store was compared with the run, bit for bit.

    Parameters
    ----------
    ok : bool
        Whether they agreed.
    """

    ok: bool
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreFacts:
    """What the ledger of a reduced store says.

    Parameters
    ----------
    ledger_complete : bool
        Every source event is there once.
    undecided_kept : bool
        Every undecided event is in the store.
    undecided_share : float
        Share of all events that could not be judged.
    sampled_share : float
        Share of the rejected events that are in the store; 1 if none was rejected.
    audited_kept : bool
        Every event that a certificate rests on is in the store or in the archive's payload.
    kept_incomplete : int or None
        Kept events of which the store lacks pixels, all or some; None if that is not known.
    same : bool
        The store is still the one that these facts are about.
    """

    ledger_complete: bool
    undecided_kept: bool
    undecided_share: float
    sampled_share: float
    audited_kept: bool
    drift_alarm: bool
    kept_incomplete: int | None = None
    same: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """A certificate that was given.

    Parameters
    ----------
    intact : bool
        It matches its own checksum, and its bound follows from its counts.
    fits : bool
        It is about this run, model, threshold and ledger.
    loss_upper, confidence : float
        Largest share of the hits that may be lost, and the chance that this holds.
    at_ns : int
        When it was first seen.
    """

    intact: bool
    fits: bool
    loss_upper: float
    confidence: float
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """The plan that everything after it is bound to.

    Parameters
    ----------
    planner : str
        Name that was given.
    uid : int
        Account that owns the plan.
    n_payload : int
        Packages and files that go to the archive.
    release_bytes : int
        Bytes that may leave the disk.
    """

    plan_id: str
    planner: str
    uid: int
    policy_sha256: str
    at_ns: int
    n_payload: int
    release_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """Somebody's word for a plan.

    Parameters
    ----------
    by : str
        Name that was given; it proves nothing.
    uid : int
        Account that owns the paper; people are told apart by it.
    account : str
        Its name, which the policy may ask for.
    role : str
        Empty where the policy asks for none.
    """

    by: str
    uid: int
    account: str
    role: str
    plan_id: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptFacts:
    """What the archive said about the files of a plan.

    Parameters
    ----------
    faults : tuple of Refusal
        What is wrong with the receipts, R04 to R07.
    oldest_ns : int
        When the file was asked for that was asked for longest ago.
    """

    plan_id: str
    faults: tuple[Refusal, ...]
    oldest_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecallFacts:
    """A recall test.

    Parameters
    ----------
    tested, bad : int
        Files staged back, and those of them that were not what was archived.
    """

    plan_id: str
    tested: int
    bad: int
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Somebody forbids that anything of the run is released.

    Parameters
    ----------
    until_ns : int or None
        None for as long as it is not lifted.
    uid : int or None
        Account that owns its paper; None if that is not known.
    """

    hold_id: str
    reason: str
    authority: str
    by: str
    at_ns: int
    until_ns: int | None = None
    uid: int | None = None

    def stands(self, now_ns: int) -> bool:
        """Whether it is in force."""
        return self.until_ns is None or now_ns < self.until_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known about one run.

    Parameters
    ----------
    name : str
        Of the run.
    tampered : tuple of str
        One sentence for each thing that was changed after it was written.
    unknown : tuple of str
        Fields and versions that are not known here.
    last_seen_ns : int
        Latest time that the journal knows of.
    experiment_end_ns : int or None
        None if it is not known.
    store : StoreFacts or None
        None if there is no reduced store.
    holds : tuple of Hold
        Those that were not lifted.
    missing_holds : tuple of str
        Holds that the journal knows, and that were taken away instead of lifted.
    holds_problem : str
        Why it cannot be known who holds the run; empty if it is.
    open_jobs : tuple of str
        What still uses the run.
    released_today_bytes : int
        Bytes that other tickets of the last 24 hours let go.
    limit_problem : str
        Why that cannot be known; empty if it is.
    ticket_plan_id : str
        Of the ticket that was written; empty if none was.
    ticket_void : str
        Why the ticket that was written is void; empty if it is not, or there is none.
    released_plan_id : str
        Of the plan that the facility says it acted upon; empty if it has said nothing.
    restored : bool
        Everything that was released is back and was compared.
    """

    name: str = "run"
    tampered: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    last_seen_ns: int = 0
    source: SourcePin = SourcePin.UNPINNED
    experiment_end_ns: int | None = None
    store: StoreFacts | None = None
    verified: Verified | None = None
    certificate: CertificateFacts | None = None
    plan: PlanFacts | None = None
    approvals: tuple[Approval, ...] = ()
    receipts: ReceiptFacts | None = None
    recall: RecallFacts | None = None
    holds: tuple[Hold, ...] = ()
    missing_holds: tuple[str, ...] = ()
    holds_problem: str = ""
    open_jobs: tuple[str, ...] = ()
    released_today_bytes: int = 0
    limit_problem: str = ""
    ticket_plan_id: str = ""
    ticket_void: str = ""
    released_plan_id: str = ""
    restored: bool = False

    def standing_holds(self, now_ns: int) -> tuple[Hold, ...]:
        """Holds in force."""
        return tuple(hold for hold in self.holds if hold.stands(now_ns))
