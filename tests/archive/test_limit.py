"""What one day may let go counts over all runs below a folder, wherever their evidence lies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from archived import Call
from beamtimes import Beamtime, codes, set_clock

from sfxreduce.archive.evidence.folder import JOURNAL
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.evidence.tickets import TicketBook, limit_roots, one_ticket_at_a_time
from sfxreduce.archive.rules.policy import Disposition, Policy, Release, parse_policy
from sfxreduce.archive.rules.states import State
from sfxreduce.archive.steps import release as releasing
from sfxreduce.archive.steps import status
from sfxreduce.errors import OutputError

N_RUNS = 3


def limited(beamtime: Beamtime, *, runs: float, root: str = "") -> Policy:
    """So many runs a day."""
    size = sum(path.stat().st_size for path in beamtime.run().rglob("*") if path.is_file())
    return Policy(
        release=Release(
            disposition=Disposition.TAPE_RAW,
            grace_days=0,
            min_retention_days=0,
            max_tb_per_day=runs * size / 1e12,
            limit_root=root,
        )
    )


@pytest.fixture
def apart(beamtime: Beamtime) -> Beamtime:
    """Runs whose evidence lies in folders of their own, below one root."""

    def subject(n: int = 0, *, by: str = "ann", root: Path | None = None) -> Subject:
        evidence = beamtime.root / "evidence" / f"group{n}" / f"run{n}"
        evidence.parent.mkdir(parents=True, exist_ok=True)
        run = beamtime.run(n)
        return Subject.of(run, by=by, clock=beamtime.clock, evidence=evidence, root=root)

    beamtime.subject = subject  # type: ignore[method-assign,assignment]
    return beamtime


def prepare(beamtime: Beamtime, policy: Policy) -> None:
    for n in range(N_RUNS):
        beamtime.plan(n, policy)
        beamtime.approve(n)
        beamtime.execute(n)
        beamtime.recall(n)


def test_tickets_of_all_runs_below_the_root_of_the_policy_count(apart: Beamtime) -> None:
    root = apart.root / "evidence"
    prepare(apart, limited(apart, runs=2.5, root=str(root)))
    for n in (0, 1):
        assert apart.release(n).state is State.RELEASE_TICKETED
    assert codes(lambda: apart.release(2)) == {"R15"}
    assert not (apart.subject(2).evidence / "release-ticket.json").exists()
    # A ticket that was called off lets nothing go.
    releasing.cancel_run(apart.subject(0))
    assert apart.release(2).state is State.RELEASE_TICKETED
    apart.clock.wait(days=1.1)
    book = TicketBook(apart.clock())
    assert book.others({root: 3}, apart.subject(0).evidence).bytes == 0


def test_a_root_that_the_user_names_counts_beside_that_of_the_policy(apart: Beamtime) -> None:
    group = apart.root / "evidence" / "group1"
    prepare(apart, limited(apart, runs=1.5))
    root = apart.root / "evidence"
    assert limit_roots(None, root=None, evidence=group / "run1") == {group: 1}
    policy = limited(apart, runs=1, root=str(group))
    assert set(limit_roots(policy, root=root, evidence=group / "run1")) == {group, root}
    apart.release(0)
    token = apart.state_of(1).plan_id
    wide = apart.subject(1, by="cy", root=root)  # type: ignore[call-arg]
    from beamtimes import POOL

    assert codes(lambda: releasing.release_run(wide, token=token, to=apart.to, pool=POOL)) == {
        "R15"
    }
    assert codes(lambda: releasing.release_run(wide, pool=POOL)) == {"R15"}


@pytest.mark.parametrize("how", ["elsewhere", "gone", "not readable", "of another version"])
def test_what_cannot_be_counted_is_refused(apart: Beamtime, how: str) -> None:
    root = apart.root / "evidence"
    if how == "elsewhere":
        root = apart.root / "other"
        root.mkdir()
    elif how == "gone":
        root = apart.root / "gone"
    prepare(apart, limited(apart, runs=9, root=str(root)))
    if how in ("elsewhere", "gone"):
        assert codes(apart.release) == {"R15"}
        return
    apart.release(0)
    ticket = apart.subject(0).evidence / "release-ticket.json"
    text = ticket.read_text()
    ticket.write_text("{" if how == "not readable" else text.replace("{", '{"colour":1,', 1))
    assert codes(lambda: apart.release(1)) == {"R15"}
    ticket.write_text(text)
    assert apart.release(1).state is State.RELEASE_TICKETED


def test_a_ticket_of_less_than_nothing_makes_no_room(apart: Beamtime) -> None:
    prepare(apart, limited(apart, runs=9, root=str(apart.root / "evidence")))
    apart.release(0)
    ticket = apart.subject(0).evidence / "release-ticket.json"
    facts = json.loads(ticket.read_text())
    ticket.write_text(json.dumps(facts | {"bytes": -facts["bytes"]}))
    assert codes(lambda: apart.release(1)) == {"R15"}


@pytest.mark.parametrize("kind", ["a pipe", "a link to nowhere"])
def test_what_is_no_file_is_no_ticket_of_zero_bytes(tmp_path: Path, kind: str) -> None:
    # A pipe was waited for without end, and a link to nowhere let nothing go.
    for name in ("own", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / JOURNAL).touch()
    place = tmp_path / "other" / "release-ticket.json"
    os.mkfifo(place) if kind == "a pipe" else place.symlink_to("gone")
    found = TicketBook(0).others({tmp_path: 1}, tmp_path / "own")
    assert "cannot be read" in found.problem


def test_two_tickets_are_not_written_at_once(apart: Beamtime) -> None:
    root = apart.root / "evidence"
    prepare(apart, limited(apart, runs=1.5, root=str(root)))
    with one_ticket_at_a_time({root: 3}):
        with pytest.raises(OutputError, match="another process is at work"):
            apart.release(0)
        assert not (apart.subject(0).evidence / "release-ticket.json").exists()
    assert apart.release(0).state is State.RELEASE_TICKETED
    assert codes(lambda: apart.release(1)) == {"R15"}


def test_the_sum_over_a_root_knows_who_is_ready_by_the_same_count(beamtime: Beamtime) -> None:
    prepare(beamtime, limited(beamtime, runs=1.5))
    found = status.status_runs(beamtime.root, clock=beamtime.clock)
    assert len(found["ready"]) == N_RUNS
    beamtime.release(0)
    found = status.status_runs(beamtime.root, clock=beamtime.clock)
    assert found["ready"] == []
    assert status.nightly_runs(beamtime.root, clock=beamtime.clock)["ready"] == []


def test_a_root_has_to_be_absolute() -> None:
    assert codes(lambda: parse_policy("[release]\nlimit_root = 'data'", where="p")) == {"R16"}
    assert parse_policy("[release]\nlimit_root = '/data'", where="p").release.limit_root == "/data"


def test_the_command_takes_the_root(
    call: Call, apart: Beamtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_clock(monkeypatch, apart.clock)
    prepare(apart, limited(apart, runs=1.5))
    root = apart.root / "evidence"

    def release(n: int) -> tuple[int, Any]:
        words = ["--evidence", apart.subject(n).evidence, "--root", root, "--serial"]
        words += [f"--to={pool}" for pool in apart.to]
        token = apart.state_of(n).plan_id
        found = call("archive", "release", apart.run(n), *words, "--execute", token)
        return found[0], found[1]

    assert release(0)[0] == 0
    code, found = release(1)
    assert code == 3
    assert [refusal["code"] for refusal in found["refusals"]] == ["R15"]
    ticket = json.loads((apart.subject(0).evidence / "release-ticket.json").read_text())
    assert ticket["bytes"] > 0
