"""The states of a run on its way to the archive, and which arrow is allowed now.

`step` is a function of the state, the facts and the clock alone. An arrow on the main way asks for
all that the arrows before it asked for, of the facts as they are now; so no order of commands,
crashes and changes leads to a ticket that lacks a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from sfxreduce.archive.rules import checks
from sfxreduce.archive.rules.facts import Evidence, SourcePin
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import Refusal
from sfxreduce.errors import UsageError

__all__ = ["ARROWS", "PATH", "State", "Step", "next_state", "step", "voids"]


class State(StrEnum):
    """How far a run has come. `Evidence.holds` are beside it: a held run stays where it is."""

    REGISTERED = "REGISTERED"
    SCORED = "SCORED"
    REDUCED = "REDUCED"
    VERIFIED = "VERIFIED"
    CERTIFIED = "CERTIFIED"
    PLANNED = "PLANNED"
    APPROVED = "APPROVED"
    ARCHIVING = "ARCHIVING"
    ARCHIVED = "ARCHIVED"
    RECALL_TESTED = "RECALL_TESTED"
    GRACE = "GRACE"
    RELEASABLE = "RELEASABLE"
    RELEASE_TICKETED = "RELEASE_TICKETED"
    RELEASED = "RELEASED"
    RESTORING = "RESTORING"
    RESTORED = "RESTORED"
    INVALIDATED = "INVALIDATED"


Check = Callable[[checks.Case], Iterator[Refusal]]

PATH = tuple(State)[: tuple(State).index(State.RELEASED) + 1]
"""The main way, from REGISTERED to RELEASED."""

ASKS: dict[State, tuple[Check, ...]] = {
    State.SCORED: (checks.ledger,),
    State.REDUCED: (checks.reduced,),
    State.VERIFIED: (checks.was_verified,),
    State.CERTIFIED: (checks.certified,),
    State.PLANNED: (checks.planned,),
    State.APPROVED: (checks.approved,),
    State.ARCHIVING: (checks.held,),
    State.ARCHIVED: (checks.archived,),
    State.RECALL_TESTED: (checks.recalled,),
    State.GRACE: (),
    State.RELEASABLE: (checks.may_go, checks.waited, checks.fresh),
    State.RELEASE_TICKETED: (),
}
"""What an arrow asks for in addition to all before it."""

RECENTLY = (State.VERIFIED, State.PLANNED, State.RELEASABLE, State.RELEASE_TICKETED)
"""Arrows that ask for a recent comparison; between them days may pass in which tape is written."""

BEFORE_TICKET = PATH[PATH.index(State.SCORED) : PATH.index(State.RELEASE_TICKETED) + 1]

UNDOABLE = (State.ARCHIVED, State.RECALL_TESTED, State.GRACE, State.RELEASABLE)
"""States from which the copy on the disk can be kept after all."""

ARROWS = frozenset(
    [
        *pairwise(PATH),
        *((state, State.INVALIDATED) for state in BEFORE_TICKET),
        *((state, State.RESTORED) for state in UNDOABLE),
        (State.INVALIDATED, State.REGISTERED),
        (State.RESTORED, State.REGISTERED),
        (State.RELEASE_TICKETED, State.RELEASABLE),
        (State.RELEASED, State.RESTORING),
        (State.RESTORING, State.RESTORED),
    ]
)
"""All arrows there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Whether an arrow may be taken.

    Parameters
    ----------
    before, after : State
        Its two ends.
    refusals : tuple of Refusal
        Why not; empty if it may. For an arrow to INVALIDATED: see `voids`.
    """

    before: State
    after: State
    refusals: tuple[Refusal, ...]

    @property
    def allowed(self) -> bool:
        """Whether it may be taken."""
        return not self.refusals


def step(
    state: State, evidence: Evidence, *, policy: Policy, now_ns: int, to: State | None = None
) -> Step:
    """Judge one arrow by the facts as they are now.

    Parameters
    ----------
    now_ns : int
        Nanoseconds since 1970.
    to : State, optional
        End of the arrow; by default the one that `next_state` names.

    Raises
    ------
    UsageError
        If no arrow leads there.

    Examples
    --------
    >>> found = step(State.REGISTERED, Evidence(), policy=Policy(), now_ns=0)
    >>> found.after, found.allowed, found.refusals[0].code
    (<State.SCORED: 'SCORED'>, False, 'R01')
    """
    after = to or next_state(state, evidence, policy=policy, now_ns=now_ns)
    if (state, after) not in ARROWS:
        raise UsageError(f"archive: no arrow leads from {state} to {after}")
    asked = _asked(state, after)
    case = checks.Case(facts=evidence, policy=policy, now_ns=now_ns)
    found = [refusal for check in asked for refusal in check(case)]
    return Step(before=state, after=after, refusals=tuple(dict.fromkeys(found)))


def next_state(state: State, evidence: Evidence, *, policy: Policy, now_ns: int) -> State:
    """Where the run would go next: on along the main way, or back if something voids it."""
    if state in (State.INVALIDATED, State.RESTORED):
        return State.REGISTERED
    if state is State.RELEASED:
        return State.RESTORING
    if state is State.RESTORING:
        return State.RESTORED
    if state in BEFORE_TICKET and voids(state, evidence, policy=policy, now_ns=now_ns):
        return State.INVALIDATED
    return PATH[PATH.index(state) + 1]


def voids(state: State, evidence: Evidence, *, policy: Policy, now_ns: int) -> tuple[Refusal, ...]:
    """Why plan and certificate no longer hold; empty if they do.

    The source, the reduced store or its ledger changed, a comparison failed, or there is an alarm.
    A source that is gone after the ticket was written is what the ticket is for.
    """
    case = checks.Case(facts=evidence, policy=policy, now_ns=now_ns)
    expected = {SourcePin.SAME, SourcePin.UNPINNED}
    if state is State.RELEASE_TICKETED:
        expected.add(SourcePin.GONE)
    found: list[Refusal] = []
    if evidence.source not in expected:
        found += checks.planned(case)
    if evidence.verified and PATH.index(state) >= PATH.index(State.VERIFIED):
        found += checks.was_verified(case)
    if PATH.index(state) >= PATH.index(State.CERTIFIED):
        found += [r for r in checks.certified(case) if r.code == "R13"]
    return tuple(found)


def _asked(state: State, after: State) -> tuple[Check, ...]:
    """All conditions of an arrow."""
    if after is State.REGISTERED or state is State.RELEASED:
        return (checks.sound,)
    if state is State.RESTORING:
        return (checks.sound, checks.restored)
    back = (State.RELEASE_TICKETED, State.RELEASABLE)
    if after in (State.INVALIDATED, State.RESTORED) or (state, after) == back:
        # What only keeps data on the disk is never refused but for evidence that cannot be read.
        return (checks.sound,)
    if after is State.RELEASED:
        return (checks.sound, checks.held, checks.released)
    way = PATH[: PATH.index(after) + 1]
    recently = (checks.verified,) if after in RECENTLY else ()
    return (checks.sound, *(c for s in way for c in ASKS.get(s, ())), *recently)
