"""Runs go to tape, are tested, wait, get a ticket, and come back: and nothing else gets one."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archived import snapshot
from beamtimes import POOL, Beamtime, act_as_the_facility, codes
from planted import BrightestPixel, planted_run

import sfxreduce.archive
from sfxreduce.archive.evidence.documents import TicketPaper, read_paper
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.rules.policy import Disposition, Keep, Policy, Release
from sfxreduce.archive.rules.states import PATH, State
from sfxreduce.archive.steps import execute as executing
from sfxreduce.archive.steps import release as releasing
from sfxreduce.archive.steps import restore as restoring
from sfxreduce.archive.steps import status
from sfxreduce.archive.steps.hold import add_hold, lift_hold, list_holds
from sfxreduce.errors import OutputError, SourceError, UsageError
from sfxreduce.io.files.journal import Journal
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs


def test_an_experiment_goes_all_the_way_and_comes_back(beamtime: Beamtime, tmp_path: Path) -> None:
    before = {n: snapshot(beamtime.run(n)) for n in range(5)}
    for n in range(5):
        plan_id = beamtime.plan(n, certificate=beamtime.certificate(n))
        assert beamtime.plan(n) == plan_id
        beamtime.approve(n)
        dry = executing.execute_run(beamtime.subject(n), to=beamtime.to)
        assert dry.dry_run
        assert not list((beamtime.root / "tape_b").rglob(f"r{n:04}*"))
        beamtime.execute(n)
        found = beamtime.recall(n)
        assert found.bad == 0
        assert beamtime.state_of(n).state is State.GRACE
    assert codes(beamtime.release) == {"R12"}
    assert {r.code for r in beamtime.state_of().refusals} == {"R12"}
    beamtime.clock.wait(days=8)
    nightly = status.nightly_runs(beamtime.root, clock=beamtime.clock)
    assert len(nightly["ready"]) == 5
    assert not nightly["attention"]
    for n in range(5):
        # A dry run refuses what the real one would.
        with pytest.raises(UsageError, match="no pool is named"):
            releasing.release_run(beamtime.subject(n), pool=POOL)
        assert releasing.release_run(beamtime.subject(n), to=beamtime.to, pool=POOL).dry_run
        assert not (beamtime.subject(n).evidence / "release-ticket.json").exists()
        done = beamtime.release(n)
        ticket = read_paper(TicketPaper, done.ticket.read_bytes(), where="ticket")
        listed = {f.path: (f.size, f.sha256) for f in ticket.files}
        assert listed == {
            name: (len(data), hashlib.sha256(data).hexdigest())
            for name, (data, *_) in before[n].items()
        }
        assert any("Recall test" in why for why in ticket.why)
        assert any("of the hits were rejected" in why for why in ticket.why)
        assert beamtime.state_of(n).history == PATH[: PATH.index(State.RELEASE_TICKETED) + 1]
        # Nothing of this touched the source.
        assert snapshot(beamtime.run(n)) == before[n]
    whole = open_run(beamtime.run(1)).source.read(range(40)).pixels
    act_as_the_facility(beamtime, 1, tmp_path)
    assert beamtime.state_of(1).state is State.RELEASED
    out = tmp_path / "events.zarr"
    names = [f"event-{n}" for n in (1, 2, 3, 38)]
    found = restoring.restore_run_events(
        beamtime.subject(1), names, out=out, to=beamtime.to, pool=POOL
    )
    assert (found.events, found.from_run) == (4, 0)
    assert found.from_hits >= 1
    assert found.from_archive >= 1
    np.testing.assert_array_equal(open_run(out).source.read(range(4)).pixels, whole[[1, 2, 3, 38]])
    back = tmp_path / "back.zarr"
    assert restoring.restore_run(beamtime.subject(1), out=back, to=beamtime.to) > 0
    assert {k: v[0] for k, v in snapshot(back).items()} == {k: v[0] for k, v in before[1].items()}
    assert beamtime.state_of(1).history[-2:] == (State.RESTORING, State.RESTORED)


def test_a_run_without_a_verified_output_is_not_planned(beamtime: Beamtime) -> None:
    (beamtime.root / "elsewhere").mkdir()
    beamtime.hits(3).rename(beamtime.root / "elsewhere" / "hits.zarr")
    assert codes(lambda: beamtime.plan(3, hits=None)) == {"R01"}
    assert codes(lambda: beamtime.plan(hits=beamtime.root / "nothing.zarr")) == {"R01"}
    # The reduced store of another run has other frames.
    assert codes(lambda: beamtime.plan(0, hits=beamtime.hits(1))) == {"R01"}
    file = sorted(p for p in (beamtime.hits(2) / "frames" / "c").rglob("*") if p.is_file())[0]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert codes(lambda: beamtime.plan(2)) == {"R01"}


def test_a_ledger_that_lacks_an_event_is_refused(beamtime: Beamtime) -> None:
    shutil.rmtree(beamtime.hits() / "ledger" / "decision")
    assert codes(beamtime.plan) & {"R14", "R01"}


def test_the_planner_does_not_approve(beamtime: Beamtime) -> None:
    beamtime.plan()
    assert codes(lambda: beamtime.approve(by="ann")) == {"R11"}
    assert codes(lambda: executing.execute_run(beamtime.subject(), to=beamtime.to)) == {"R11"}
    beamtime.approve()
    wrong = "0" * 8
    assert codes(lambda: executing.execute_run(beamtime.subject(), to=beamtime.to, token=wrong))
    short = beamtime.state_of().plan_id[:7]
    assert codes(
        lambda: executing.execute_run(beamtime.subject(), to=beamtime.to, token=short)
    ) == {"R11"}


@pytest.mark.parametrize("how", ["append", "touch", "add", "remove", "rot"])
def test_a_source_that_changed_after_the_plan_is_refused(beamtime: Beamtime, how: str) -> None:
    beamtime.plan()
    beamtime.approve()
    file = sorted(p for p in (beamtime.run() / "frames" / "c").rglob("*") if p.is_file())[0]
    facts = file.stat()
    if how == "append":
        file.write_bytes(file.read_bytes() + b"x")
    elif how == "touch":
        file.touch()
    elif how == "add":
        (beamtime.run() / "more").write_bytes(b"x")
    elif how == "remove":
        file.unlink()
    else:
        import os

        data = bytearray(file.read_bytes())
        data[100] ^= 1
        with file.open("r+b") as opened:
            opened.write(data)
        os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert codes(beamtime.execute) == {"R03"}
    assert beamtime.state_of().state is State.INVALIDATED
    assert not list((beamtime.root / "tape_a").rglob("*.*"))


def test_a_source_that_rotted_in_the_time_of_grace_gets_no_ticket(beamtime: Beamtime) -> None:
    beamtime.all_of()
    file = sorted(p for p in (beamtime.run() / "frames" / "c").rglob("*") if p.is_file())[0]
    file.touch()
    assert codes(beamtime.release) == {"R03"}
    assert beamtime.state_of().state is State.GRACE or State.INVALIDATED


def test_a_tampered_certificate_is_refused(beamtime: Beamtime) -> None:
    path = beamtime.certificate()
    facts = json.loads(path.read_text())
    facts["counted"]["found_at"] = [1]
    path.write_text(json.dumps(facts))
    assert codes(lambda: beamtime.plan(certificate=path)) == {"R02", "R10"}
    beamtime.plan(1, certificate=beamtime.certificate(1))
    own = beamtime.subject(1).evidence / "certificate.json"
    own.write_text(own.read_text().replace("dice", "lice"))
    assert "R10" in codes(lambda: beamtime.approve(1))


@pytest.mark.parametrize("line", [0, 3, -1])
def test_a_journal_that_lost_a_line_is_refused(beamtime: Beamtime, line: int) -> None:
    beamtime.plan()
    journal = beamtime.subject().evidence / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    del lines[line]
    journal.write_bytes(b"".join(lines))
    assert codes(beamtime.approve) == {"R10"}
    assert "R10" in {refusal.code for refusal in beamtime.state_of().refusals}


@pytest.mark.parametrize("name", ["plan.json", "approvals", "receipts", "forged"])
def test_papers_that_were_changed_or_put_there_are_refused(beamtime: Beamtime, name: str) -> None:
    beamtime.all_of()
    evidence = beamtime.subject().evidence
    if name == "forged":
        paper = sorted((evidence / "approvals").glob("*.json"))[0]
        (evidence / "approvals" / "more.json").write_bytes(paper.read_bytes())
    else:
        paths = sorted((evidence / name).rglob("*.json")) or [evidence / name]
        paths[0].write_text(paths[0].read_text().replace('"', ' "', 1))
    assert codes(beamtime.release) == {"R10"}


def test_a_clock_that_was_set_back_is_refused(beamtime: Beamtime) -> None:
    beamtime.all_of()
    beamtime.clock.wait(days=-20)
    assert codes(beamtime.release) == {"R17"}
    assert codes(beamtime.approve) == {"R17"}
    assert "R17" in {refusal.code for refusal in beamtime.state_of().refusals}


def test_papers_with_unknown_fields_are_refused(beamtime: Beamtime) -> None:
    beamtime.plan()
    (beamtime.subject().evidence / "jobs").mkdir()
    job = beamtime.subject().evidence / "jobs" / "reprocess.json"
    job.write_text(json.dumps({"job_version": 1, "name": "reprocess", "by": "dee", "colour": 1}))
    assert codes(beamtime.approve) == {"R16"}
    job.write_text(json.dumps({"job_version": 1, "name": "reprocess", "by": "dee"}))
    beamtime.approve()
    beamtime.execute()
    beamtime.recall()
    beamtime.clock.wait(days=8)
    assert codes(beamtime.release) == {"R19"}
    job.unlink()
    assert beamtime.release().state is State.RELEASE_TICKETED


STEPS = ("plan", "approve", "execute", "recall", "release")


def hold_for_a_thesis(beamtime: Beamtime) -> None:
    add_hold(beamtime.subject(by="dee"), reason="thesis", authority="pi")


def go(beamtime: Beamtime, steps: Sequence[str]) -> None:
    for name in steps:
        if name == "release":
            beamtime.clock.wait(days=8)
        getattr(beamtime, name)()


@pytest.mark.parametrize("n_before", range(6))
def test_a_hold_wins_at_any_moment(beamtime: Beamtime, n_before: int) -> None:
    ticket = beamtime.subject().evidence / "release-ticket.json"
    go(beamtime, STEPS[:n_before])
    hold_for_a_thesis(beamtime)
    assert beamtime.state_of().held
    go(beamtime, STEPS[n_before:2])
    if n_before == 5:
        assert json.loads(ticket.read_text())["files"] == []
    beamtime.clock.wait(days=30)
    for name in STEPS[max(n_before, 2) :] or ("release",):
        assert "R09" in codes(getattr(beamtime, name)) | ({"R09"} if name == "recall" else set())
    assert not ticket.exists() or json.loads(ticket.read_text())["files"] == []


def test_only_the_authority_that_placed_a_hold_lifts_it(beamtime: Beamtime) -> None:
    go(beamtime, STEPS)
    hold_for_a_thesis(beamtime)
    (held,) = list_holds(beamtime.subject())
    dee = beamtime.subject(by="dee")
    assert codes(lambda: lift_hold(dee, held.hold_id, authority="legal")) == {"R11"}
    assert codes(beamtime.release) == {"R09"}
    lift_hold(dee, held.hold_id, authority="pi")
    assert beamtime.release().state is State.RELEASE_TICKETED


def test_a_hold_is_seen_before_every_file(
    beamtime: Beamtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sfxreduce.archive.tape.backends.posix import PosixBackend

    beamtime.plan()
    beamtime.approve()
    n_put = 0
    put = PosixBackend.put

    def held_after_three(self: PosixBackend, *args: Any, **options: Any) -> Any:
        nonlocal n_put
        n_put += 1
        if n_put == 3:
            # The journal is in use meanwhile; the hold stands all the same.
            add_hold(beamtime.subject(by="dee"), reason="thesis", authority="pi")
        return put(self, *args, **options)

    monkeypatch.setattr(PosixBackend, "put", held_after_three)
    assert codes(beamtime.execute) == {"R09"}
    assert n_put == 3


def test_a_hold_that_was_taken_away_is_noticed(beamtime: Beamtime) -> None:
    beamtime.plan()
    add_hold(beamtime.subject(), reason="thesis", authority="pi")
    (hold,) = (beamtime.subject().evidence / "holds").glob("*.json")
    hold.unlink()
    assert codes(beamtime.approve) == {"R10"}


class Crash(Exception):
    """The machine stops here."""


def crash_at(monkeypatch: pytest.MonkeyPatch, n: int, *, after: bool) -> Iterator[None]:
    append = Journal.append
    count = 0

    def stop(self: Journal, body: Any) -> Any:
        nonlocal count
        count += 1
        if count == n and not after:
            raise Crash
        entry = append(self, body)
        if count == n:
            raise Crash
        return entry

    monkeypatch.setattr(Journal, "append", stop)
    yield
    monkeypatch.setattr(Journal, "append", append)


@pytest.mark.parametrize("after", [False, True], ids=["before the line", "after the line"])
def test_a_crash_at_any_line_of_the_journal_leaves_an_old_or_a_new_state(
    beamtime: Beamtime, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    beamtime.plan()
    beamtime.approve()
    n_crashes = 0
    for command, good in ((beamtime.execute, State.ARCHIVED), (beamtime.release, None)):
        for n in range(1, 500):
            before = beamtime.state_of().state
            crash = crash_at(monkeypatch, n, after=after)
            next(crash)
            try:
                command()
            except Crash:
                n_crashes += 1
            else:
                break
            finally:
                next(crash, None)
            found = beamtime.state_of()
            assert PATH.index(found.state) >= PATH.index(before)
            assert "R10" not in {refusal.code for refusal in found.refusals}
            # Begin each crash one line further, but from where the last one stopped.
        if good is not None:
            assert beamtime.state_of().state is good
            beamtime.recall()
            beamtime.clock.wait(days=8)
    assert beamtime.state_of().state is State.RELEASE_TICKETED
    assert n_crashes > 15
    ticket = beamtime.subject().evidence / "release-ticket.json"
    assert json.loads(ticket.read_text())["plan_id"] == beamtime.state_of().plan_id


def test_a_release_can_be_called_off_and_planned_again(beamtime: Beamtime) -> None:
    beamtime.all_of()
    beamtime.release()
    assert releasing.cancel_run(beamtime.subject()) is State.RESTORED
    ticket = beamtime.subject().evidence / "release-ticket.json"
    assert json.loads(ticket.read_text())["files"] == []
    assert codes(beamtime.release) == {"R11"}
    beamtime.plan()
    # The approvals of the plan that was called off are void, though it says the same.
    assert codes(lambda: executing.execute_run(beamtime.subject(), to=beamtime.to)) == {"R11"}
    beamtime.approve()
    beamtime.execute()
    beamtime.recall()
    assert codes(beamtime.release) == {"R12"}


def test_no_more_is_released_in_a_day_than_the_policy_allows(beamtime: Beamtime) -> None:
    size = sum(path.stat().st_size for path in beamtime.run().rglob("*") if path.is_file())
    policy = Policy(
        release=Release(
            disposition=Disposition.TAPE_RAW,
            grace_days=7,
            min_retention_days=0,
            max_tb_per_day=1.5 * size / 1e12,
        )
    )
    for n in (0, 1):
        beamtime.plan(n, policy)
        beamtime.approve(n)
        beamtime.execute(n)
        beamtime.recall(n)
    beamtime.clock.wait(days=8)
    beamtime.release(0)
    assert codes(lambda: beamtime.release(1)) == {"R15"}
    beamtime.clock.wait(days=1.1)
    assert beamtime.release(1).state is State.RELEASE_TICKETED


def test_dropping_rejects_needs_a_certificate_two_people_and_a_flag(
    beamtime: Beamtime, tmp_path: Path
) -> None:
    def policy(*, allow: bool) -> Policy:
        return Policy(
            release=Release(
                disposition=Disposition.DROP_REJECTS,
                allow_irreversible=allow,
                max_loss=0.2,
                confidence=0.9,
                grace_days=0,
                min_retention_days=0,
            ),
            keep=Keep(random_share=0.01),
        )

    assert codes(lambda: beamtime.plan(policy=policy(allow=True))) == {"R02"}
    other = beamtime.certificate(1)
    assert "R02" in codes(lambda: beamtime.plan(policy=policy(allow=True), certificate=other))
    for allow in (False, True):
        beamtime.plan(policy=policy(allow=allow), certificate=beamtime.certificate())
        for by, role in (("bob", "pi"), ("cy", "facility")):
            assert codes(lambda: executing.execute_run(beamtime.subject(), to=beamtime.to)) == {
                "R11"
            }
            beamtime.approve(by=by, role=role)
        beamtime.execute()
        beamtime.recall()
        if not allow:
            assert codes(beamtime.release) == {"R11"}
    beamtime.release()
    names = {p.name for p in (beamtime.root / "tape_a").rglob("*") if p.is_dir()}
    assert {"hits", "audited"} <= names
    assert "raw" not in names
    audited = open_run(beamtime.subject().evidence / "audited.zarr")
    source = open_run(beamtime.run()).source
    index = audited.columns.source_index.values
    assert index.size >= 20
    np.testing.assert_array_equal(
        audited.source.read(range(index.size)).pixels, source.read(index.tolist()).pixels
    )


def test_rejects_can_go_to_tape_alone_and_come_back(beamtime: Beamtime, tmp_path: Path) -> None:
    policy = Policy(
        release=Release(disposition=Disposition.TAPE_REJECTS, grace_days=0, min_retention_days=0)
    )
    whole = open_run(beamtime.run()).source.read(range(40)).pixels
    beamtime.all_of(0, policy)
    beamtime.release()
    act_as_the_facility(beamtime, 0, tmp_path)
    shutil.rmtree(beamtime.subject().evidence / "rejects.zarr")
    names = [f"@{n}" for n in (0, 1, 7, 39)]
    out = tmp_path / "events.zarr"
    with pytest.raises(SourceError, match="no archive was asked: name it with --to"):
        restoring.restore_run_events(beamtime.subject(), names, out=out, pool=POOL)
    found = restoring.restore_run_events(
        beamtime.subject(), names, out=out, to=beamtime.to, pool=POOL
    )
    assert found.from_archive >= 2
    np.testing.assert_array_equal(open_run(out).source.read(range(4)).pixels, whole[[0, 1, 7, 39]])


def test_a_dark_run_is_never_released(beamtime: Beamtime) -> None:
    dark = beamtime.root / "dark0001.zarr"
    ingest_run(planted_run(n_events=40, seed=9), out=dark, pool=POOL)
    hits = beamtime.root / "dark_hits.zarr"
    filter_run(
        open_run(dark),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=hits),
        pool=POOL,
    )
    beamtime.run = lambda n=0: dark  # type: ignore[method-assign,assignment]
    beamtime.all_of(0, hits=hits)
    assert codes(beamtime.release) == {"R20"}


def test_a_store_without_its_sample_of_rejects_is_refused(beamtime: Beamtime) -> None:
    hits = beamtime.root / "bare.zarr"
    outputs = Outputs(store=hits)
    filter_run(
        open_run(beamtime.run()),
        settings=FilterSettings(scorer=BrightestPixel(), audit_share=0),
        outputs=outputs,
        pool=POOL,
    )
    assert codes(lambda: beamtime.plan(hits=hits)) == {"R20"}


def test_evidence_never_lies_in_the_run(beamtime: Beamtime) -> None:
    for evidence in (beamtime.run() / "evidence", beamtime.root, beamtime.run()):
        with pytest.raises(UsageError, match="overlaps the run"):
            Subject.of(beamtime.run(), by="ann", evidence=evidence)


def test_two_programs_do_not_work_on_one_run(beamtime: Beamtime) -> None:
    beamtime.plan()
    with beamtime.subject().opened():
        with pytest.raises(OutputError, match="another process"):
            beamtime.approve()
    beamtime.approve()


def test_nightly_voids_what_changed_and_says_so(beamtime: Beamtime) -> None:
    for n in (0, 1):
        beamtime.all_of(n)
    (beamtime.run(1) / "zarr.json").touch()
    found = status.nightly_runs(beamtime.root, clock=beamtime.clock)
    assert found["ready"] == [str(beamtime.run(0))]
    assert found["attention"] == [str(beamtime.run(1))]
    assert {move["to"] for move in found["moved"]} == {"INVALIDATED"}
    assert found["states"] == {"GRACE": 1, "INVALIDATED": 1}


SOURCE_WRITES = re.compile(r"\b(unlink|rmtree|rename|replace|remove|rmdir|truncate|chmod|utime)\(")

ALLOWED = {
    # Each is about a file that this package made itself, beside an output or in a work folder.
    "evidence/owners.py",
    "evidence/workfolder.py",
    "steps/packing.py",
    "tape/backends/posix.py",
    "tape/holding.py",
    "tape/recall.py",
}


def test_the_archive_has_no_code_that_deletes_or_moves_data() -> None:
    root = Path(sfxreduce.archive.__file__ or "").parent
    found = set()
    for file in root.rglob("*.py"):
        text = re.sub(r"dataclasses\.replace|\bdef replace|import .*replace", "", file.read_text())
        # dataclasses.replace and str.replace change no files.
        text = re.sub(r"(?<![.\w])replace\(|\.replace\((?=[\"'])", "", text)
        if SOURCE_WRITES.search(text):
            found.add(str(file.relative_to(root)))
    assert found <= ALLOWED
