"""Experiments whose runs are archived: runs, reduced stores, tapes, people, and a clock."""

from __future__ import annotations

import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from audited import true_labels

from sfxreduce.archive.evidence import owners
from sfxreduce.archive.evidence import subject as subjects
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.rules.policy import Policy, preset
from sfxreduce.archive.rules.refusals import ArchiveRefused
from sfxreduce.archive.rules.states import State
from sfxreduce.archive.steps import execute as executing
from sfxreduce.archive.steps import plan as planning
from sfxreduce.archive.steps import release as releasing
from sfxreduce.archive.steps import status
from sfxreduce.cluster import SerialPool
from sfxreduce.decisions.threshold import Promise
from sfxreduce.pipeline.audit import audit_certify, audit_draw

DAY_NS = 86_400 * 10**9
POOL = SerialPool()


def uid_of(name: str) -> int:
    """Account of a person in tests that have only one."""
    return 60_000 + zlib.crc32(name.encode()) % 5_000


def people_by_name(monkeypatch: pytest.MonkeyPatch) -> dict[Path, str]:
    """Let papers belong to the account of the person that they name, and names be accounts.

    In what is returned, a test may write down whose a paper is in truth.
    """
    read = owners.read_owned
    names: dict[int, str] = {}
    truly: dict[Path, str] = {}

    def uid(name: str) -> int:
        names[uid_of(name)] = name
        return uid_of(name)

    def read_as_named(path: Path, *, most_bytes: int) -> owners.Owned:
        owned = read(path, most_bytes=most_bytes)
        try:
            facts = json.loads(owned.data)
        except ValueError:
            return owned
        by = facts.get("planner", facts.get("by")) if isinstance(facts, dict) else None
        by = truly.get(path, by)
        return replace(owned, uid=uid(by)) if isinstance(by, str) else owned

    monkeypatch.setattr(owners, "read_owned", read_as_named)
    monkeypatch.setattr(owners, "account_name", lambda number: names.get(number, str(number)))
    monkeypatch.setattr(Subject, "uid", property(lambda subject: uid(subject.by)))
    return truly


@dataclass
class Clock:
    """A clock that tests set."""

    now_ns: int

    def __call__(self) -> int:
        self.now_ns += 1000
        return self.now_ns

    def wait(self, *, days: float) -> None:
        self.now_ns += int(days * DAY_NS)


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], int]) -> None:
    """Let commands, which take the machine's clock, take another one."""
    monkeypatch.setattr(subjects, "time", SimpleNamespace(time_ns=clock))


@dataclass
class Beamtime:
    """Runs of one experiment, filtered, and two archives."""

    root: Path
    clock: Clock

    @property
    def to(self) -> tuple[str, str]:
        return (f"a=posix:{self.root}/tape_a", f"b=posix:{self.root}/tape_b")

    def run(self, n: int = 0) -> Path:
        return self.root / f"r{n:04}.zarr"

    def hits(self, n: int = 0) -> Path:
        return self.root / f"r{n:04}_hits.zarr"

    def subject(self, n: int = 0, *, by: str = "ann") -> Subject:
        return Subject.of(self.run(n), by=by, clock=self.clock)

    def certificate(self, n: int = 0) -> Path:
        """Certify by the truth that was planted; all rejects are labelled."""
        promise = Promise(max_loss=0.2, confidence=0.9)
        draw = audit_draw(self.hits(n), nonce="dice", promise=promise, rejects=26, kept=14)
        labels = true_labels(draw, range(0, 40, 3))
        path = self.root / f"certificate_{n}.json"
        audit_certify(self.hits(n), draw, labels, promise=promise, out=path, overwrite=True)
        return path

    def plan(self, n: int = 0, policy: Policy | None = None, **options: Any) -> str:
        chosen = planning.PlanOptions(
            policy=policy or preset("laptop"), hits=options.pop("hits", self.hits(n)), **options
        )
        return planning.plan_run(self.subject(n), chosen, pool=POOL).plan_id

    def approve(self, n: int = 0, *, by: str = "bob", role: str = "") -> None:
        planning.approve_run(self.subject(n, by=by), role=role)

    def execute(self, n: int = 0) -> None:
        token = self.state_of(n).plan_id[:8]
        executing.execute_run(self.subject(n), to=self.to, token=token)

    def recall(self, n: int = 0) -> Any:
        return executing.recall_run(self.subject(n), to=self.to)

    def release(self, n: int = 0, **options: Any) -> releasing.Released:
        token, subject = self.state_of(n).plan_id[:8], self.subject(n, by="cy")
        return releasing.release_run(subject, token=token, to=self.to, pool=POOL, **options)

    def all_of(self, n: int = 0, policy: Policy | None = None, **options: Any) -> None:
        """Everything but the release."""
        self.plan(n, policy, **options)
        self.approve(n)
        self.execute(n)
        self.recall(n)
        self.clock.wait(days=8)

    def state_of(self, n: int = 0) -> status.Status:
        return status.status_run(self.subject(n))


def codes(call: Callable[[], object]) -> set[str]:
    with pytest.raises(ArchiveRefused) as caught:
        call()
    return {refusal.code for refusal in caught.value.refusals}


def act_as_the_facility(beamtime: Beamtime, n: int, folder: Path) -> None:
    """What a facility's own tool does with a ticket."""
    subject = beamtime.subject(n)
    data = (subject.evidence / "release-ticket.json").read_bytes()
    shutil.rmtree(beamtime.run(n))
    receipt = folder / "receipt.json"
    facts = {
        "release_version": 1,
        "plan_id": json.loads(data)["plan_id"],
        "ticket_sha256": hashlib.sha256(data).hexdigest(),
        "by": "facility",
        "released": [str(beamtime.run(n))],
    }
    receipt.write_text(json.dumps(facts | {"ticket_sha256": "0" * 64}))
    assert codes(lambda: releasing.record_release(subject, receipt)) == {"R10"}
    receipt.write_text(json.dumps(facts))
    assert releasing.record_release(subject, receipt) is State.RELEASED
