"""Archives that lie, by the commands that a user types: each is refused, and no ticket comes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from archived import Call, snapshot
from beamtimes import set_clock
from planted import BrightestPixel, planted_run

from sfxreduce.archive.evidence.subject import wall_clock
from sfxreduce.archive.tape.backends.lying import LIES
from sfxreduce.cluster import SerialPool
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs

DAY_NS = 86_400 * 10**9

RECEIPTS = {
    "buffer-only": {"R05"},
    "accepted": {"R05"},
    "wrong-checksum": {"R06"},
    "wrong-size": {"R06"},
    "other-algorithm": {"R06"},
    "catalogue": {"R06"},
    "one-copy": {"R07"},
    "same-pool": {"R07"},
    "same-medium": {"R07"},
    "other-file": {"R04"},
    "stale": {"R04"},
}
"""Lies that receipts give away, and what `execute` says then."""

RECALLS = {
    "echoed-checksum": {"R06", "R08"},
    "truncated-recall": {"R06", "R08"},
    "no-recall": {"R08"},
}
"""Lies that only a recall finds out, and what `recall-test` says then."""

Step = Callable[..., tuple[int, Any]]


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run and its reduced store."""
    folder, pool = tmp_path_factory.mktemp("filtered"), SerialPool()
    ingest_run(planted_run(n_events=40), out=folder / "run.zarr", pool=pool)
    outputs = Outputs(store=folder / "hits.zarr")
    filter_run(
        open_run(folder / "run.zarr"),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=outputs,
        pool=pool,
    )
    return folder


@pytest.fixture
def step(
    call: Call, filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Step]:
    """Take one step of the run's way, with archives that tell some lie; the run is approved."""
    # No test here cuts the power.
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for name in ("run.zarr", "hits.zarr"):
        shutil.copytree(filtered / name, tmp_path / name)
    (tmp_path / "tape").mkdir()
    run = tmp_path / "run.zarr"
    plan = ["archive", "plan", run, "--hits", tmp_path / "hits.zarr", "--serial", "--as", "ann"]
    _, made, _ = call(*plan)
    assert call("archive", "approve", run, "--as", "bob")[0] == 0
    wall = wall_clock()

    def of(lie: str) -> Step:
        to = [f"--to={pool}=lying:{lie}:{tmp_path}/tape" for pool in ("a", "b")]
        token = ["--execute", made["plan_id"][:8]]
        words = {"execute": [*to, *token], "recall-test": to, "release": ["--serial", *to, *token]}

        def take(command: str) -> tuple[int, Any]:
            if command == "release":
                set_clock(monkeypatch, lambda: wall + 8 * DAY_NS)
            status, found, err = call("archive", command, run, *words[command])
            if status:
                assert err.splitlines()[-1].startswith("sfxreduce: refused: R")
            return status, found

        return take

    return of


def codes(answer: tuple[int, Any]) -> set[str]:
    status, found = answer
    assert status == 3
    return {refusal["code"] for refusal in found["refusals"]}


def assert_nothing_may_go(folder: Path, before: object, state: str, call: Call) -> None:
    assert not (folder / "run.zarr.evidence" / "release-ticket.json").exists()
    assert snapshot(folder / "run.zarr") == before
    assert call("archive", "status", folder / "run.zarr")[1]["state"] == state


def test_every_lie_that_is_known_is_tried_here() -> None:
    assert set(RECEIPTS) | set(RECALLS) | {"none"} == set(LIES)


def test_the_same_steps_with_an_honest_archive_lead_to_a_ticket(
    step: Callable[[str], Step], tmp_path: Path
) -> None:
    take = step("none")
    for command in ("execute", "recall-test", "release"):
        status, found = take(command)
        assert status == 0
    assert found["state"] == "RELEASE_TICKETED"
    assert (tmp_path / "run.zarr.evidence" / "release-ticket.json").exists()


@pytest.mark.parametrize("lie", sorted(RECEIPTS))
def test_a_lie_in_a_receipt_is_refused_by_execute_and_by_all_after_it(
    step: Callable[[str], Step], tmp_path: Path, call: Call, lie: str
) -> None:
    before = snapshot(tmp_path / "run.zarr")
    take = step(lie)
    assert codes(take("execute")) == RECEIPTS[lie]
    assert codes(take("recall-test")) == RECEIPTS[lie]
    # Besides the lie, there is no recall test that was passed.
    assert codes(take("release")) == RECEIPTS[lie]
    assert_nothing_may_go(tmp_path, before, "ARCHIVING", call)


@pytest.mark.parametrize("lie", sorted(RECALLS))
def test_a_lie_that_only_a_recall_shows_is_refused_by_it_and_by_release(
    step: Callable[[str], Step], tmp_path: Path, call: Call, lie: str
) -> None:
    before = snapshot(tmp_path / "run.zarr")
    take = step(lie)
    assert take("execute")[0] == 0
    assert codes(take("release")) == {"R08"}
    assert codes(take("recall-test")) == RECALLS[lie]
    assert codes(take("release")) == {"R08"}
    assert_nothing_may_go(tmp_path, before, "ARCHIVED", call)
    assert not list((tmp_path / "run.zarr.evidence").glob(".recall-*"))


# One copy and old receipts are lies about putting, and here everything is there already.
@pytest.mark.parametrize("lie", sorted(set(RECEIPTS) - {"one-copy", "stale"}))
def test_an_archive_that_begins_to_lie_after_it_was_tested_gets_no_ticket(
    step: Callable[[str], Step], tmp_path: Path, call: Call, lie: str
) -> None:
    before = snapshot(tmp_path / "run.zarr")
    take = step("none")
    assert (take("execute")[0], take("recall-test")[0]) == (0, 0)
    assert codes(step(lie)("release")) >= RECEIPTS[lie]
    assert_nothing_may_go(tmp_path, before, "GRACE", call)
