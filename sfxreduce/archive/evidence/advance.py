"""Move a run along its way, one line of the journal for each arrow."""

from __future__ import annotations

from sfxreduce.archive.evidence.folder import EvidenceWriter
from sfxreduce.archive.evidence.gather import Gathered
from sfxreduce.archive.rules import checks
from sfxreduce.archive.rules.facts import Evidence
from sfxreduce.archive.rules.policy import Policy
from sfxreduce.archive.rules.refusals import ArchiveRefused, Refusal, refuse
from sfxreduce.archive.rules.states import PATH, State, step, voids

__all__ = ["advance", "arrow", "check_sound", "go_on", "missing", "send_back"]


def arrow(
    writer: EvidenceWriter, before: State, after: State, *, why: tuple[Refusal, ...] = ()
) -> State:
    """Write down that an arrow was taken."""
    facts = {"from": str(before), "to": str(after), "why": [str(refusal) for refusal in why]}
    writer.append("state", **facts)
    return after


def check_sound(facts: Evidence, *, policy: Policy, now_ns: int) -> None:
    """Refuse evidence or a clock that is not to be trusted.

    Raises
    ------
    ArchiveRefused
    """
    case = checks.Case(facts=facts, policy=policy, now_ns=now_ns)
    found = tuple(checks.sound(case))
    if found:
        raise ArchiveRefused(found)


def missing(
    state: State, facts: Evidence, *, policy: Policy, now_ns: int, until: State
) -> tuple[Refusal, ...]:
    """Why a run cannot go as far as some state by these facts; empty if it can."""
    if state not in PATH:
        return (_off_the_path(state),)
    while PATH.index(state) < PATH.index(until):
        found = step(state, facts, policy=policy, now_ns=now_ns)
        if found.after is State.INVALIDATED:
            return voids(state, facts, policy=policy, now_ns=now_ns)
        if not found.allowed:
            return found.refusals
        state = found.after
    return ()


def _off_the_path(state: State) -> Refusal:
    return refuse("R11", f"the run is {state}", remedy="run 'sfxreduce archive plan' again")


def advance(
    writer: EvidenceWriter, found: Gathered, *, policy: Policy, now_ns: int, until: State
) -> State:
    """Take arrows as long as they are allowed, up to a state.

    Raises
    ------
    ArchiveRefused
        If one is not allowed; what was reached stays. A run whose plan is void becomes
        INVALIDATED.
    """
    state, facts = found.contents.state, found.facts
    if state not in PATH:
        raise ArchiveRefused([_off_the_path(state)])
    while PATH.index(state) < PATH.index(until):
        ahead = step(state, facts, policy=policy, now_ns=now_ns)
        if not ahead.allowed:
            raise ArchiveRefused(ahead.refusals)
        if ahead.after is State.INVALIDATED:
            why = voids(state, facts, policy=policy, now_ns=now_ns)
            arrow(writer, state, State.INVALIDATED, why=why)
            raise ArchiveRefused(why)
        state = arrow(writer, state, ahead.after)
    return state


def go_on(
    writer: EvidenceWriter, found: Gathered, *, policy: Policy, now_ns: int, until: State
) -> None:
    """Go as far as some state; a run that is there or beyond has to meet its conditions still.

    Raises
    ------
    ArchiveRefused
        If it cannot.
    """
    state, facts = found.contents.state, found.facts
    if state not in PATH or PATH.index(state) < PATH.index(until):
        advance(writer, found, policy=policy, now_ns=now_ns, until=until)
        return
    before = PATH[PATH.index(until) - 1]
    refusals = step(before, facts, policy=policy, now_ns=now_ns, to=until).refusals
    if refusals:
        why = voids(state, facts, policy=policy, now_ns=now_ns)
        if why:
            arrow(writer, state, State.INVALIDATED, why=why)
        raise ArchiveRefused(refusals)


def send_back(writer: EvidenceWriter, state: State) -> None:
    """Void what was planned and begin anew; holds and times stay."""
    if state in PATH[1:]:
        state = arrow(writer, state, State.INVALIDATED)
    if state is not State.REGISTERED:
        arrow(writer, state, State.REGISTERED)
