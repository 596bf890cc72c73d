"""What a state means now is said in the same words for one run, for many, and every night."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from archived import Call
from beamtimes import Beamtime, act_as_the_facility

from sfxreduce.archive.steps import hold as holding
from sfxreduce.archive.steps import status


def standing(beamtime: Beamtime, *, state: str) -> str:
    """How a run stands, after everybody was asked and said the same."""
    one = status.status_run(beamtime.subject()).to_json()
    [row] = [
        row
        for row in status.status_runs(beamtime.root, clock=beamtime.clock)["runs"]
        if row["run"] == one["run"]
    ]
    night = status.nightly_runs(beamtime.root, clock=beamtime.clock)
    [nightly] = [row for row in night["runs"] if row["run"] == one["run"]]
    assert row == nightly
    for name in ("state", "standing", "policy", "releasable_from", "held", "ready"):
        assert row[name] == one[name], name
    assert row["codes"] == sorted({refusal["code"] for refusal in one["refusals"]})
    assert one["state"] == state
    assert not night["attention"]
    words: str = one["standing"]
    if words:
        assert night["standings"] == {words: 1}
        assert f"Standing: {words}." in status.explain_run(beamtime.subject())
    return words


def test_a_run_stands_as_everybody_says(beamtime: Beamtime, tmp_path: Path) -> None:
    beamtime.plan()
    assert standing(beamtime, state="PLANNED") == ""
    beamtime.approve()
    beamtime.execute()
    beamtime.recall()
    ends = status.status_run(beamtime.subject()).releasable_from
    assert standing(beamtime, state="GRACE") == f"stays on the disk until {ends}"
    # The end of the grace period is in the refusal too.
    [refusal] = status.status_run(beamtime.subject()).refusals
    assert f"until {ends}" in refusal.message
    beamtime.clock.wait(days=8)
    # Its receipts are old by now: they are asked for anew when the ticket is written.
    assert standing(beamtime, state="GRACE") == "a ticket can be written"
    beamtime.release()
    ticketed = "RELEASE_TICKETED"
    assert standing(beamtime, state=ticketed) == "waiting for the facility"
    [refusal] = status.status_run(beamtime.subject()).refusals
    assert refusal.code == "R24"
    assert "plan again" not in refusal.remedy
    placed = holding.add_hold(beamtime.subject(), reason="thesis", authority="pi")
    assert standing(beamtime, state=ticketed) == "ticket void: a hold was placed"
    found = status.status_run(beamtime.subject())
    assert [refusal.code for refusal in found.refusals] == ["R09", "R21"]
    assert not any("plan again" in refusal.remedy for refusal in found.refusals)
    assert status.status_runs(beamtime.root, clock=beamtime.clock)["bytes_ticketed"] == 0
    holding.lift_hold(beamtime.subject(), placed.hold_id, authority="pi")
    assert standing(beamtime, state=ticketed) == "ticket void: a hold was placed"
    # As the refusal says: a new ticket, and no new plan.
    plan_id = status.status_run(beamtime.subject()).plan_id
    beamtime.release()
    assert standing(beamtime, state=ticketed) == "waiting for the facility"
    assert status.status_run(beamtime.subject()).plan_id == plan_id
    act_as_the_facility(beamtime, 0, tmp_path)
    assert standing(beamtime, state="RELEASED") == ""


@pytest.fixture
def tried(call: Call, beamtime: Beamtime, tmp_path: Path) -> dict[str, Any]:
    """What every command says of a run under the preset for trying."""
    policy = tmp_path / "try.toml"
    policy.write_text(call("policy", "show", "--preset", "try", json_too=False)[1])
    run, pools = beamtime.run(0), [f"--to={to}" for to in beamtime.to]
    told = {"plan": call("archive", "plan", run, "--policy", policy, "--serial")[1]}
    token = told["plan"]["plan_id"][:8]
    assert call("archive", "approve", run)[0] == 0
    told["execute"] = call("archive", "execute", run, *pools, "--execute", token)[1]
    assert call("archive", "recall-test", run, *pools)[0] == 0
    told["status"] = call("archive", "status", run)[1]
    told["release"] = call("archive", "release", run, *pools, "--serial", "--execute", token)[1]
    told["explain"] = call("archive", "explain", run)[1]
    told["root"] = call("archive", "status", "--root", beamtime.root)[1]
    told["ticket"] = Path(told["release"]["ticket"]).read_text()
    return told


def test_the_whole_way_can_be_tried_at_once_and_says_everywhere_that_it_is_tried(
    tried: dict[str, Any],
) -> None:
    caution = "no grace period: for trying, not for data that matter"
    assert tried["release"]["state"] == "RELEASE_TICKETED"
    assert tried["status"]["ready"]
    for command in ("plan", "execute", "release", "status", "explain", "root", "ticket"):
        assert caution in str(tried[command]), command
