"""Whoever may write to the evidence writes anything there, and gets no ticket and runs no script.

The forger owns the folder and all that is forged in it, knows the way every paper is written, and
has waited for as long as the policy asks. What is missing is the key, and the accounts of others.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from archived import Call, write_keys
from beamtimes import DAY_NS, Beamtime, set_clock

from sfxreduce.archive.evidence.documents import (
    ApprovalPaper,
    LiftPaper,
    PlanPaper,
    TicketPaper,
    paper_bytes,
    read_paper,
)
from sfxreduce.archive.evidence.folder import JOURNAL, EvidenceWriter
from sfxreduce.archive.evidence.pins import pin_files
from sfxreduce.archive.evidence.signing import read_signing_key
from sfxreduce.archive.evidence.subject import Subject
from sfxreduce.archive.rules.policy import Policy, parse_policy
from sfxreduce.archive.steps import execute as executing
from sfxreduce.archive.steps.hold import add_hold

SITE = """
name = "site"
[release]
disposition = "tape-raw"
grace_days = 30
min_retention_days = 0
verified_days = 365
[holds]
holds_root = "{root}/holds"
"""

SCRIPT = """#!/bin/sh
touch {marker}
exit 1
"""

CATALOGUE = """#!/bin/bash
# Repeats the checksums that it was told, and never kept a byte.
set -eu
root={root}
case $1 in
capabilities) echo '{{"tool": "c", "pools": [], "rereads": true, "recalls_from_medium": true}}' ;;
put) mkdir -p "$(dirname "$root/$4/$3")"
    echo "$(stat -c %s "$2") $(sha256sum "$2" | cut -d' ' -f1)" > "$root/$4/$3"
    exec "$0" query "$3" "$4" ;;
query) read -r size sum < "$root/$3/$2"
    printf '{{"path": "%s", "size": %s, "algorithm": "sha256", "value": "%s",' "$2" "$size" "$sum"
    printf '"value_source": "reread", "state": "ONTAPE",'
    printf '"copies": [{{"pool": "%s", "medium": "V-%s", "archive_id": "7"}}]}}' "$3" "$3" ;;
recall) head -c "$(cut -d' ' -f1 < "$root/$4/$2")" /dev/zero > "$3" ;;
esac
"""


@dataclass
class Forge:
    """A run whose evidence is the forger's, and the site that is to be deceived."""

    beamtime: Beamtime
    people: dict[Path, str]
    keys: tuple[Path, Path]
    marker: Path
    to: list[str] = field(default_factory=list)
    own: Path = Path()

    @property
    def root(self) -> Path:
        return self.beamtime.root

    @property
    def subject(self) -> Subject:
        return self.beamtime.subject(by="mal")

    @property
    def evidence(self) -> Path:
        return self.subject.evidence

    @property
    def policy(self) -> Policy:
        return parse_policy(self.own.read_text(), where="site")

    def planned(self, policy: Policy | None = None) -> None:
        """Plan as everybody would; the plan is the forger's."""
        self.beamtime.plan(0, policy or self.policy)
        self.people[self.evidence / "plan.json"] = "mal"

    def go(self, *steps: str) -> None:
        for name in steps:
            getattr(self.beamtime, name)()

    def writes(self, forged: Callable[[EvidenceWriter], object]) -> None:
        """Add to the evidence, with whatever the journal has to say of it."""
        with self.subject.folder.opened(by="mal") as writer:
            forged(writer)

    def plan(self) -> PlanPaper:
        return read_paper(PlanPaper, (self.evidence / "plan.json").read_bytes(), where="plan")

    def replans(self, **changes: Any) -> None:
        paper = self.plan().model_copy(update=changes)
        self.writes(lambda writer: writer.write("plan.json", paper_bytes(paper)))

    def approves(self, name: str = "approvals/forged.json") -> None:
        """Write an approval in the name of another person."""
        paper = ApprovalPaper(
            plan_id=self.plan().plan_id, by="bob", role="", at_ns=self.beamtime.clock()
        )
        self.people[self.evidence / name] = "mal"
        self.writes(lambda writer: writer.write(name, paper_bytes(paper)))

    def script(self, place: Path) -> str:
        place.parent.mkdir(exist_ok=True)
        place.write_text(SCRIPT.format(marker=self.marker))
        place.chmod(0o755)
        return f"exec:{place}"


@pytest.fixture
def forge(beamtime: Beamtime, people: dict[Path, str], tmp_path: Path) -> Forge:
    made = Forge(beamtime, people, write_keys(tmp_path / "key", tmp_path / "pub"), tmp_path / "ran")
    made.own = tmp_path / "site.toml"
    made.own.write_text(SITE.format(root=beamtime.root))
    made.to = [f"--to={pool}" for pool in beamtime.to]
    (beamtime.root / "holds").mkdir(mode=0o700)
    (beamtime.root / "holds").chmod(0o1777)
    return made


def lax_policy(forge: Forge) -> None:
    """A plan under a policy that asks for next to nothing."""
    text = SITE.format(root=forge.root) + "[approvals]\ntwo_person = false\n"
    forge.planned(parse_policy(text, where="lax"))
    forge.approves()
    forge.go("execute", "recall")


def lean_payload(forge: Forge) -> None:
    """A plan that archives one small file of the run, and lets all of it go."""
    forge.planned()
    one = min(forge.plan().payload, key=lambda file: file.size)
    forge.replans(payload=(one,), packages=())
    forge.go("approve", "execute", "recall")


def run_of_another(forge: Forge) -> None:
    """A plan about another run than the one that was named."""
    forge.planned()
    other = forge.beamtime.run(1)
    forge.replans(run=str(other), sources=pin_files(other))


def word_of_another(forge: Forge) -> None:
    """An approval in the name of another person."""
    forge.planned()
    forge.approves()


def link_to_a_word(forge: Forge) -> None:
    """The same, where another person's file is linked to."""
    forge.planned()
    forge.approves()
    paper = forge.evidence / "approvals" / "forged.json"
    paper.rename(forge.root / "of_bob.json")
    forge.people[forge.root / "of_bob.json"] = "bob"
    paper.symlink_to(forge.root / "of_bob.json")


def word_that_others_may_change(forge: Forge) -> None:
    """A true approval of something else, whose file its owner left open to the group."""
    forge.planned()
    forge.approves()
    paper = forge.evidence / "approvals" / "forged.json"
    forge.people[paper] = "bob"
    paper.chmod(0o664)


def receipts_of_nothing(forge: Forge) -> None:
    """Receipts, and a recall, of copies that were never made."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    for pool in ("tape_a", "tape_b"):
        shutil.rmtree(forge.root / pool)
        (forge.root / pool).mkdir()


def recall_of_nothing(forge: Forge) -> None:
    """A recall that never was, of an archive whose receipts are perfect."""
    forge.planned()
    place = forge.root / "site" / "catalogue.sh"
    place.parent.mkdir()
    place.write_text(CATALOGUE.format(root=forge.root / "catalogue"))
    place.chmod(0o755)
    forge.to = [f"--to={pool}=exec:{place}" for pool in "ab"]
    forge.go("approve")
    token = forge.plan().plan_id
    to = [word.removeprefix("--to=") for word in forge.to]
    executing.execute_run(forge.subject, to=to, token=token)
    n, plan_id = len(forge.plan().parcels), forge.plan().plan_id
    told = {"tested": n, "bad": 0, "statement": "all is well"}
    paper = {"recall_version": 1, "plan_id": plan_id, "by": "ann", "at_ns": 1, **told}
    name = "recalls/forged.json"
    forge.writes(lambda writer: writer.write(name, json.dumps(paper).encode()))
    forge.writes(lambda writer: writer.append("recalled", plan_id=plan_id, paper=name, **told))


def times_of_long_ago(forge: Forge) -> None:
    """A whole journal of two months ago, written today."""
    forge.beamtime.clock.now_ns = time.time_ns() - 60 * DAY_NS
    forge.planned()
    forge.go("approve", "execute", "recall")
    forge.beamtime.clock.now_ns = time.time_ns() - 30 * DAY_NS


def address_in_the_journal(forge: Forge) -> None:
    """A script that the journal names as the archive."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    spec, plan_id = forge.script(forge.evidence / "tape.sh"), forge.plan().plan_id
    copies = {"a": spec, "b": spec}
    forge.writes(lambda writer: writer.append("archive", plan_id=plan_id, copies=copies))
    forge.to = []


def address_in_the_plan(forge: Forge) -> None:
    """A script that the policy in the plan names as the archive."""
    spec = forge.script(forge.root / "tools" / "tape.sh")
    policy = forge.policy.model_copy(update={"pools": {"a": spec, "b": spec}})
    forge.planned(policy)
    forge.go("approve", "execute", "recall")
    forge.to = []


def script_of_the_site(forge: Forge) -> None:
    """The site's own script, in a folder that others may write to."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    spec = forge.script(forge.root / "tools" / "tape.sh")
    (forge.root / "tools").chmod(0o777)
    forge.to = [f"--to=a={spec}", f"--to=b={spec}"]


def script_behind_a_link(forge: Forge) -> None:
    """A link of the site's, which leads through a folder that others may write to."""
    script_of_the_site(forge)
    (forge.root / "site").mkdir()
    (forge.root / "site" / "tape.sh").symlink_to(forge.root / "tools" / "tape.sh")
    forge.to = [f"--to={pool}=exec:{forge.root}/site/tape.sh" for pool in "ab"]


def head_without_the_hold(forge: Forge) -> None:
    """A journal cut before a hold was written down, with the head that fits it."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    journal = forge.evidence / JOURNAL
    before = journal.read_bytes(), (forge.evidence / f"{JOURNAL}.head").read_bytes()
    add_hold(forge.beamtime.subject(by="dee"), reason="thesis", authority="pi")
    journal.write_bytes(before[0])
    (forge.evidence / f"{JOURNAL}.head").write_bytes(before[1])


def hold_lifted_by_the_forger(forge: Forge) -> None:
    """A paper that lifts somebody else's hold, in that one's name."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    hold = add_hold(forge.beamtime.subject(by="dee"), reason="thesis", authority="pi")
    (file,) = (forge.root / "holds").glob("*.json")
    lift = LiftPaper(hold_id=hold.hold_id, authority="pi", by="dee", at_ns=forge.beamtime.clock())
    place = file.with_name(f"{file.stem}.lifted.json")
    place.write_bytes(paper_bytes(lift))
    place.chmod(0o644)
    forge.people[place] = "mal"
    forge.writes(lambda writer: writer.append("lifted", hold_id=hold.hold_id, authority="pi"))


def hold_taken_away(forge: Forge) -> None:
    """A hold that is gone from its folder, which the journal knows of."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    add_hold(forge.beamtime.subject(by="dee"), reason="thesis", authority="pi")
    (file,) = (forge.root / "holds").glob("*.json")
    file.unlink()


def holds_hidden(forge: Forge) -> None:
    """No folder of holds any more."""
    forge.planned()
    forge.go("approve", "execute", "recall")
    add_hold(forge.beamtime.subject(by="dee"), reason="thesis", authority="pi")
    (forge.root / "holds").rename(forge.root / "elsewhere")


FORGERIES: dict[Callable[[Forge], None], set[str]] = {
    lax_policy: {"R11"},
    lean_payload: {"R04"},
    run_of_another: {"R03"},
    word_of_another: {"R11"},
    link_to_a_word: {"R10"},
    word_that_others_may_change: {"R10"},
    receipts_of_nothing: set(),
    recall_of_nothing: {"R06", "R08"},
    times_of_long_ago: {"R12"},
    address_in_the_journal: set(),
    address_in_the_plan: {"R11"},
    script_of_the_site: set(),
    script_behind_a_link: set(),
    head_without_the_hold: {"R09"},
    hold_lifted_by_the_forger: {"R09"},
    hold_taken_away: {"R10"},
    holds_hidden: {"R09"},
}
"""What is forged, and with which codes the ticket is refused; without any it is an error."""


def release(call: Call, forge: Forge, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Any, str]:
    """Do what the site does, once the grace period is over."""
    forge.beamtime.clock.wait(days=31)
    set_clock(monkeypatch, forge.beamtime.clock)
    words = ["--policy", forge.own, "--sign-key", forge.keys[0], "--serial", "--as", "cy"]
    token = forge.plan().plan_id
    return call("archive", "release", forge.beamtime.run(), "--execute", token, *words, *forge.to)


def may_act(call: Call, forge: Forge) -> bool:
    ticket = forge.evidence / "release-ticket.json"
    return call("archive", "check-ticket", ticket, "--key", forge.keys[1])[0] == 0


@pytest.mark.parametrize("forged", FORGERIES, ids=lambda forged: forged.__name__)
def test_forged_evidence_leads_to_no_ticket_and_runs_no_script(
    call: Call, forge: Forge, monkeypatch: pytest.MonkeyPatch, forged: Callable[[Forge], None]
) -> None:
    # Each of these led to a signed ticket, or ran the script with the rights of the key's owner.
    forged(forge)
    status, found, err = release(call, forge, monkeypatch)
    assert status != 0
    codes = {refusal["code"] for refusal in found.get("refusals", ())}
    assert codes >= FORGERIES[forged], (codes, err)
    assert "Traceback" not in err
    assert not may_act(call, forge)
    call("archive", "recall-test", forge.beamtime.run(), *forge.to)
    assert not forge.marker.exists()


def test_without_any_forgery_there_is_a_ticket(
    call: Call, forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge.planned()
    forge.go("approve", "execute", "recall")
    status, _, err = release(call, forge, monkeypatch)
    assert status == 0, err
    assert may_act(call, forge)
    assert len(FORGERIES) >= 12
    # A copy of the ticket elsewhere is void too, while somebody holds the run.
    copy = forge.own.with_name("copy.json")
    for end in ("", ".sig"):
        shutil.copy(f"{forge.evidence}/release-ticket.json{end}", f"{copy}{end}")
    check = ["archive", "check-ticket", copy, "--key", forge.keys[1]]
    assert call(*check)[0] == 0
    with forge.subject.opened():
        add_hold(forge.beamtime.subject(by="dee"), reason="thesis", authority="pi")
    status, found, _ = call(*check)
    assert (status, [refusal["code"] for refusal in found["refusals"]]) == (3, ["R09"])


def test_a_ticket_signed_by_the_forger_is_not_believed(
    call: Call, forge: Forge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mine = write_keys(tmp_path / "mine", tmp_path / "mine.pub")[0]
    release_table = forge.policy.release.model_copy(update={"sign_key": str(mine)})
    forge.planned(forge.policy.model_copy(update={"release": release_table}))
    forge.go("approve", "execute", "recall")
    set_clock(monkeypatch, forge.beamtime.clock)
    token, words = forge.plan().plan_id, ["--serial", *forge.to]
    # The key that the plan names is the forger's choice.
    status, found, _ = call("archive", "release", forge.beamtime.run(), "--execute", token, *words)
    assert (status, [refusal["code"] for refusal in found["refusals"]]) == (3, ["R22"])
    paper = TicketPaper(
        plan_id=token,
        run=str(forge.beamtime.run()),
        disposition="tape-raw",
        by="cy",
        written_at_ns=forge.beamtime.clock(),
        valid_until_ns=forge.beamtime.clock() + DAY_NS,
        files=forge.plan().sources,
        bytes=forge.plan().release_bytes,
        why=(),
        journal_sha256="0" * 64,
    )
    signature = read_signing_key(mine).sign(paper_bytes(paper))
    forge.writes(lambda writer: writer.write("release-ticket.json.sig", signature))
    forge.writes(lambda writer: writer.write("release-ticket.json", paper_bytes(paper)))
    assert not may_act(call, forge)
    assert os.path.lexists(forge.evidence / "release-ticket.json")
