"""Planner, approver and holder are three accounts, in a group and without one; as root only.

With two real accounts, approvals and holds failed with "Permission denied", and a hold made the
ticket look tampered with; and one account could approve its own plan under another name.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from accounts import GROUP, Account, need_root, open_folder
from archived import Call, write_keys

REAL_ACCOUNTS = True

POLICY = """
name = "site"
[release]
disposition = "tape-raw"
grace_days = 0
min_retention_days = 0
"""


@dataclass
class Site:
    """An experiment of ann's, and what she and others type."""

    folder: Path
    ann: Account
    bob: Account
    dee: Account
    n_commands: int = 0
    shared: bool = True

    @property
    def run(self) -> Path:
        return self.folder / "r0000.zarr"

    @property
    def evidence(self) -> Path:
        return self.folder / "r0000.zarr.evidence"

    @property
    def rules(self) -> Path:
        return self.folder / "site.toml"

    def types(self, who: Account, *words: object, status: int = 0, code: str = "") -> Any:
        """A command, which ends as it should: refused in one line, or with an answer."""
        self.n_commands += 1
        ended, found, said = who.types(*words)
        assert ended == status, (words, said)
        lines = [line for line in said.splitlines() if line.startswith("sfxreduce: ")]
        assert "Traceback" not in said
        assert len(lines) == (1 if status else 0), said
        if code:
            assert [refusal["code"] for refusal in found["refusals"]] == [code], said
        return found if not status else lines[0]

    def plan(self) -> str:
        hits = self.folder / "r0000_hits.zarr"
        words = ["archive", "plan", self.run, "--hits", hits, "--policy", self.rules, "--serial"]
        words += ["--group", GROUP] if self.shared else []
        return str(self.types(self.ann, *words)["plan_id"])

    def check(self, status: int = 0, code: str = "") -> Any:
        ticket, key = self.evidence / "release-ticket.json", self.folder / "site.pub"
        words = ["archive", "check-ticket", ticket, "--key", key]
        return self.types(self.ann, *words, status=status, code=code)

    def release(self, plan_id: str, status: int = 0, code: str = "") -> Any:
        words = ["--execute", plan_id, "--policy", self.rules, *self.to, "--serial"]
        words += ["--sign-key", self.folder / "site.key"]
        release = ["archive", "release", self.run, *words]
        return self.types(self.ann, *release, status=status, code=code)

    @property
    def to(self) -> list[str]:
        return [f"--to={pool}=posix:{self.folder}/tape_{pool}" for pool in "ab"]

    def copied(self, plan_id: str) -> None:
        self.types(self.ann, "archive", "execute", self.run, *self.to, "--execute", plan_id)
        self.types(self.ann, "archive", "recall-test", self.run, *self.to)

    def hold(self, *more: object, status: int = 0) -> Any:
        words = ["hold", "add", self.run, "--reason", "thesis", "--authority", "pi", *more]
        return self.types(self.dee, *words, status=status)


@pytest.fixture
def site(filtered_beamtime: Path, call: Call) -> Iterator[Site]:
    need_root()
    # What a command imports late lies where other accounts may not read it.
    call("archive", "status", filtered_beamtime / "r0000.zarr")
    with open_folder() as folder:
        made = Site(folder, *(Account(uid) for uid in (61_001, 61_002, 61_003)))
        for name in ("r0000.zarr", "r0000_hits.zarr"):
            shutil.copytree(filtered_beamtime / name, folder / name)
        for pool in "ab":
            (folder / f"tape_{pool}").mkdir()
        made.rules.write_text(POLICY)
        write_keys(folder / "site.key", folder / "site.pub")
        os.chown(folder, made.ann.uid, -1)
        for path in folder.rglob("*"):
            os.chown(path, made.ann.uid, -1)
        yield made


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077], ids=oct)
def test_three_accounts_of_one_group_bring_a_run_to_its_ticket(site: Site, umask: int) -> None:
    site.ann, site.bob, site.dee = (
        replace(who, umask=umask) for who in (site.ann, site.bob, site.dee)
    )
    plan_id = site.plan()
    facts = site.evidence.stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_gid) == (0o3770, GROUP)
    approve = ["archive", "approve", site.run, "--as"]
    # Whatever name is given: it is the account that planned it.
    site.types(site.ann, *approve, "bob", status=3, code="R11")
    assert site.types(site.bob, *approve, "ann")["state"] == "APPROVED"
    (paper,) = (site.evidence / "approvals").glob("*.json")
    assert paper.stat().st_uid == site.bob.uid
    assert site.ann.does(lambda: paper.write_text("{}") * 0) == 97
    assert site.ann.does(paper.unlink) == 97
    site.copied(plan_id)
    site.release(plan_id)
    site.check()
    held = site.hold()
    # It says that the run is held, not that somebody changed the ticket.
    site.check(status=3, code="R09")
    site.release(plan_id, status=3, code="R09")
    lift = ["hold", "lift", site.run, held["hold_id"], "--authority", "pi"]
    site.types(site.ann, *lift, status=3, code="R11")
    site.types(site.dee, *lift)
    site.check()
    assert site.n_commands == 13


def test_without_a_group_every_refusal_is_one_line_that_is_true(site: Site) -> None:
    site.shared = False
    site.ann, site.bob, site.dee = (
        replace(who, in_group=False) for who in (site.ann, site.bob, site.dee)
    )
    site.plan()
    line = site.types(site.bob, "archive", "approve", site.run, status=1)
    assert f"{site.bob.uid} may not write there; it belongs to {site.ann.uid}" in line
    assert "--group GROUP" in line
    line = site.hold(status=1)
    assert f"{site.dee.uid} may not place a hold there" in line
    assert "holds_root" in line
    site.types(site.ann, "archive", "approve", site.run, status=3, code="R11")
    plan = ["archive", "plan", site.run, "--hits", site.folder / "r0000_hits.zarr", "--serial"]
    line = site.types(site.ann, *plan, "--group", GROUP, status=2)
    assert "is no member of it" in line
    assert "there is no such group" in site.types(site.ann, *plan, "--group", "none", status=2)
    assert not list(site.evidence.rglob("approvals/*"))
    assert site.n_commands == 6


def test_a_hold_lies_out_of_the_planners_reach(site: Site) -> None:
    holds = site.folder / "holds"
    holds.mkdir()
    holds.chmod(0o1777)
    site.rules.write_text(f"{POLICY}[holds]\nholds_root = '{holds}'\n")
    outside = replace(site.dee, in_group=False, umask=0o077)
    site.dee = outside
    plan_id = site.plan()
    site.types(site.bob, "archive", "approve", site.run)
    site.copied(plan_id)
    site.release(plan_id)
    # Whoever places it need not even be able to read the evidence.
    held = site.hold("--policy", site.rules)
    (file,) = holds.glob("*.json")
    assert file.stat().st_uid == outside.uid
    site.check(status=3, code="R09")
    site.release(plan_id, status=3, code="R09")
    assert site.ann.does(file.unlink) == 97
    lift = ["hold", "lift", site.run, held["hold_id"], "--authority", "pi", "--policy", site.rules]
    site.types(site.ann, *lift, status=3, code="R11")
    site.types(outside, *lift)
    holds.chmod(0o1711)
    site.check(status=3, code="R09")
    site.release(plan_id, status=3, code="R09")
    holds.chmod(0o777)
    assert "others could remove holds" in site.release(plan_id, status=3, code="R09")
    holds.chmod(0o1777)
    os.chown(holds, site.ann.uid, -1)
    site.release(plan_id, status=3, code="R09")
    os.chown(holds, 0, -1)
    site.release(plan_id)
    site.check()
    assert site.n_commands == 16
