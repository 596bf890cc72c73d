"""The commands of the archive: what they print, and how they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
from archived import Call
from beamtimes import set_clock
from planted import BrightestPixel, planted_run

from sfxreduce.archive.evidence.subject import wall_clock
from sfxreduce.archive.rules.policy import PRESETS
from sfxreduce.cluster import SerialPool
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs

DAY_NS = 86_400 * 10**9


@pytest.fixture
def beamtime(tmp_path: Path) -> Path:
    pool = SerialPool()
    ingest_run(planted_run(n_events=40), out=tmp_path / "run.zarr", pool=pool)
    filter_run(
        open_run(tmp_path / "run.zarr"),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=pool,
    )
    for name in ("tape_a", "tape_b"):
        (tmp_path / name).mkdir()
    return tmp_path


def codes(found: Any) -> set[str]:
    assert set(found) == {"refused", "refusals"}
    assert found["refused"] is True
    for refusal in found["refusals"]:
        assert set(refusal) == {"code", "message", "remedy"}
        assert all(refusal.values())
    return {refusal["code"] for refusal in found["refusals"]}


def test_a_run_goes_all_the_way_by_commands(
    call: Call, beamtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, hits = beamtime / "run.zarr", beamtime / "hits.zarr"
    pools = [f"--to=a=posix:{beamtime}/tape_a", f"--to=b=posix:{beamtime}/tape_b"]
    plan = ["archive", "plan", run, "--serial", "--as", "ann"]
    (beamtime / "elsewhere").mkdir()
    away = hits.rename(beamtime / "elsewhere" / "hits.zarr")
    status, found, err = call(*plan)
    assert (status, codes(found)) == (3, {"R01"})
    assert "R01" in err
    # Beside the run it is found, as 'report savings' finds it.
    away.rename(hits)
    status, made, _ = call(*plan)
    assert (status, made["state"], made["hits"]) == (0, "PLANNED", str(hits))
    assert made["plans"][0]["plan_id"] == made["plan_id"]
    assert made["disposition"] == "tape-raw"
    assert (beamtime / "run.zarr.evidence" / "plan.json").exists()
    token = made["plan_id"][:8]
    status, found, _ = call("archive", "approve", run, "--as", "ann")
    assert (status, codes(found)) == (3, {"R11"})
    status, found, _ = call("archive", "execute", run, *pools, "--execute", token)
    assert (status, codes(found)) == (3, {"R11"})
    status, found, _ = call("archive", "approve", run, "--as", "bob")
    assert (status, found["state"]) == (0, "APPROVED")
    # A dry run refuses what the real one would, and ends with the line to copy.
    assert call("archive", "execute", run, "--to", f"a={beamtime}/tape_a")[0] == 2
    assert call("archive", "execute", run, "--to", f"a=posix:{beamtime}/no_tape")[0] == 1
    status, found, _ = call("archive", "execute", run, pools[0])
    assert (status, codes(found)) == (3, {"R07"})
    status, found, said = call("archive", "execute", run, *pools)
    assert (status, found["dry_run"]) == (0, True)
    assert not list((beamtime / "tape_a").iterdir())
    line = shlex.split(said.splitlines()[-1].removeprefix("to do it: sfxreduce "))
    assert line[-2:] == ["--execute", token]
    status, found, _ = call(*(word for word in line if word != "--json"))
    assert (status, found["state"]) == (0, "ARCHIVED")
    release = ["archive", "release", run, "--serial", *pools, "--execute", token]
    status, found, _ = call(*release)
    assert (status, codes(found)) == (3, {"R08"})
    # What the evidence names is not acted on.
    assert call("archive", "recall-test", run)[0] == 2
    status, found, _ = call("archive", "recall-test", run, *pools)
    assert (status, found["state"], found["bad"]) == (0, "GRACE", 0)
    assert "none of them is bad" in found["statement"]
    status, found, _ = call("archive", "release", run, "--serial")
    assert (status, codes(found)) == (3, {"R12"})
    wall = wall_clock()
    set_clock(monkeypatch, lambda: wall + 8 * DAY_NS)
    status, held, _ = call(
        "hold", "add", run, "--reason", "thesis", "--authority", "pi", "--as", "dee"
    )
    assert status == 0
    assert call("hold", "list", run)[1]["holds"][0]["reason"] == "thesis"
    status, found, _ = call(*release)
    assert (status, codes(found)) == (3, {"R09"})
    lift = ["hold", "lift", run, held["hold_id"], "--authority", "pi", "--as"]
    assert call(*lift, "ann")[0] == 3
    assert call(*lift, "dee")[0] == 0
    status, found, _ = call("archive", "status", run)
    assert found["ready"]
    assert call(*release[:-2], "--to=c=posix:/nowhere")[0] == 1
    status, found, said = call(*release[:-2])
    assert (status, found["dry_run"]) == (0, True)
    assert said.splitlines()[-1].startswith("to do it: sfxreduce archive release ")
    assert said.splitlines()[-1].endswith(f"--execute {token}")
    status, found, _ = call(*release)
    assert (status, found["state"]) == (0, "RELEASE_TICKETED")
    ticket = json.loads(Path(found["ticket"]).read_text())
    assert ticket["bytes"] == sum(f.stat().st_size for f in run.rglob("*") if f.is_file())
    status, found, _ = call("archive", "status", "--root", beamtime)
    assert found["states"] == {"RELEASE_TICKETED": 1}
    status, found, _ = call(
        "archive", "restore", run, "--events", "@1,@3", "--out", beamtime / "out.zarr", "--serial"
    )
    assert (status, found["events"]) == (0, 2)
    status, found, _ = call("archive", "explain", run)
    assert f"{run} is RELEASE_TICKETED." in found["sentences"]
    assert call("archive", "nightly", "--root", beamtime)[1]["moved"] == []
    status, found, _ = call("archive", "restore", run, "--cancel")
    assert (status, found["state"]) == (0, "RESTORED")


def test_what_people_read_says_the_same(call: Call, beamtime: Path) -> None:
    run = beamtime / "run.zarr"
    hits = beamtime / "hits.zarr"
    (beamtime / "elsewhere").mkdir()
    away = hits.rename(beamtime / "elsewhere" / "hits.zarr")
    status, out, err = call("archive", "plan", run, "--serial", json_too=False)
    assert (status, out) == (3, "")
    assert err.startswith("sfxreduce: refused: R01: ")
    assert "--hits" in err
    away.rename(hits)
    _, out, _ = call("archive", "plan", run, "--hits", hits, "--serial", json_too=False)
    assert "PLANNED" in out
    for words in (("status", run), ("status", "--root", beamtime), ("explain", run)):
        status, out, err = call("archive", *words, json_too=False)
        assert (status, err) == (0, "")
        assert "PLANNED" in out


def test_several_runs_are_planned_in_one_go_and_all_refusals_are_told(
    call: Call, beamtime: Path
) -> None:
    runs = [beamtime / "run.zarr", beamtime / "hits.zarr"]
    plan = ["archive", "plan", *runs, "--serial"]
    status, found, _ = call(*plan)
    assert status == 3
    # The first one's reduced store lies beside it; nothing was made from the second.
    assert [refusal["code"] for refusal in found["refusals"]] == ["R01"]
    status, found, _ = call(*plan, "--hits", beamtime / "hits.zarr")
    assert (status, found["exit_status"]) == (2, 2)
    status, found, _ = call(*plan, *(w for _ in runs for w in ("--hits", beamtime / "hits.zarr")))
    # The first run is planned, the second is not what the store was made from.
    assert codes(found) <= {"R01", "R14", "R18"}
    assert call("archive", "status", runs[0])[1]["state"] == "PLANNED"


def test_policies_are_checked_shown_and_explained(call: Call, tmp_path: Path) -> None:
    for name in PRESETS:
        status, text, _ = call("policy", "show", "--preset", name, json_too=False)
        file = tmp_path / f"{name}.toml"
        file.write_text(text)
        status, found, _ = call("policy", "check", file)
        assert (status, found["name"]) == (0, name)
        assert call("policy", "explain", file)[1] == call("policy", "explain", "--preset", name)[1]
    file.write_text("[release]\ngrace_dais = 3\n")
    for words in (("check", file), ("explain", file)):
        status, found, err = call("policy", *words)
        assert (status, codes(found)) == (3, {"R16"})
        assert "grace_dais" in err
    status, found, _ = call("archive", "plan", tmp_path, "--policy", file)
    assert (status, codes(found)) == (3, {"R16"})


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["archive", "plan", "nothing.zarr", "--serial"], 1),
        (["archive", "status"], 2),
        (["archive", "status", "--root", "nothing"], 1),
        (["archive", "restore", "run.zarr"], 2),
        (["archive", "approve", "run.zarr", "--as", "bob"], 3),
        (["archive", "execute", "run.zarr"], 3),
        (["hold", "add", "run.zarr", "--reason", "x", "--authority", "me"], 3),
        (["policy", "check", "nothing.toml"], 1),
        (["policy", "explain", "--preset", "cern"], 1),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_status(
    call: Call, beamtime: Path, words: list[str], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(beamtime)
    found = call(*words)
    assert found[0] == status
    assert found[1].get("refused") or found[1]["exit_status"] == status
    assert "Traceback" not in found[2]
    assert not list(beamtime.glob("*.evidence"))


def test_a_thousand_runs_are_summed_up_with_few_looks_at_each(
    call: Call, beamtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    run = beamtime / "run.zarr"
    call("archive", "plan", run, "--hits", beamtime / "hits.zarr", "--serial")
    evidence = beamtime / "run.zarr.evidence"
    many = beamtime / "many"
    many.mkdir()
    for n in range(1000):
        (many / f"r{n}.zarr.evidence").mkdir()
        for name in ("journal.jsonl", "journal.jsonl.head", "plan.json"):
            shutil.copy(evidence / name, many / f"r{n}.zarr.evidence" / name)
    opened = 0
    read_bytes = Path.read_bytes

    def counted(self: Path) -> bytes:
        nonlocal opened
        opened += 1
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", counted)
    status, found, _ = call("archive", "status", "--root", many)
    assert status == 0
    assert len(found["runs"]) == 1000
    assert found["states"] == {"PLANNED": 1000}
    # Their runs are not there; their journals still say what they were.
    assert len(found["attention"]) == 1000
    assert opened <= 5 * 1000


def test_a_script_without_a_guard_is_told_so_in_its_workers(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its workers gave the command again, and said that another process was at work.
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    status, found, _ = call("archive", "plan", tmp_path / "run.zarr")
    assert status == 2
    assert "__main__" in found["error"]


NOT_UTF8 = os.fsdecode(b"run\xff.zarr")


@pytest.mark.parametrize(
    "words",
    [
        ["archive", "plan", "{run}", "--hits", "{odd}"],
        ["archive", "plan", "{odd}", "--hits", "{odd}"],
        ["archive", "plan", "{run}", "--hits", "{run}", "--evidence", "{odd}.evidence"],
        ["archive", "plan", "{run}", "--hits", "{run}", "--as", "{odd}"],
        ["archive", "plan", "{run}", "--hits", "{run}", "--group", "{odd}"],
        ["archive", "plan", "{run}", "--hits", "{run}", "--policy", "{odd}"],
        ["archive", "approve", "{odd}"],
        ["archive", "approve", "{run}", "--role", "{odd}"],
        ["archive", "execute", "{odd}", "--to", "a=posix:{odd}"],
        ["archive", "execute", "{run}", "--to", "{odd}"],
        ["archive", "recall-test", "{odd}"],
        ["archive", "release", "{odd}", "--serial"],
        ["archive", "release", "{run}", "--policy", "{odd}", "--serial"],
        ["archive", "restore", "{odd}", "--all", "--out", "{odd}.back"],
        ["archive", "status", "{odd}"],
        ["archive", "explain", "{odd}"],
        ["archive", "check-ticket", "{odd}", "--key", "{odd}"],
        ["hold", "add", "{odd}", "--reason", "x", "--authority", "pi"],
        ["hold", "add", "{run}", "--reason", "{odd}", "--authority", "pi"],
        ["hold", "add", "{run}", "--reason", "x", "--authority", "{odd}"],
        ["hold", "lift", "{run}", "{odd}", "--authority", "pi"],
        ["hold", "list", "{odd}"],
        ["policy", "check", "{odd}"],
    ],
    ids=" ".join,
)
def test_names_that_are_not_utf8_are_one_line(call: Call, tmp_path: Path, words: list[str]) -> None:
    # They ended in the traceback of whatever wrote them down first.
    run, odd = tmp_path / "run.zarr", tmp_path / NOT_UTF8
    for folder in (run, odd):
        folder.mkdir()
    status, out, err = call(*(w.format(run=run, odd=odd) for w in words), json_too=False)
    assert status in (1, 2, 3), out
    assert len(err.splitlines()) == 1, err
    assert err.startswith("sfxreduce: ")


@pytest.mark.parametrize(
    "line",
    [
        "[release]\nlimit_root = '/data/\\u0000x'",
        "[release]\nsign_key = '/data/\\nx'",
        "[holds]\nholds_root = 'relative'",
        "[pools]\na = 'lying:none:/tmp'\nb = 'posix:/b'",
        "[pools]\na = 'posix:relative'\nb = 'posix:/b'",
        "[pools]\na = 'posix:/a\\u0000'\nb = 'posix:/b'",
    ],
)
def test_a_policy_names_no_path_that_is_none(call: Call, tmp_path: Path, line: str) -> None:
    # A zero byte ended in a traceback at the release, and an archive that lies was accepted.
    (tmp_path / "site.toml").write_text(line.replace("'", '"'))
    status, found, err = call("policy", "check", tmp_path / "site.toml")
    assert (status, codes(found)) == (3, {"R16"}), err


def test_two_pools_in_one_folder_are_one_copy(call: Call, beamtime: Path) -> None:
    run, hits = beamtime / "run.zarr", beamtime / "hits.zarr"
    (beamtime / "alias").symlink_to(beamtime / "tape_a")
    _, made, _ = call("archive", "plan", run, "--hits", hits, "--serial", "--as", "ann")
    assert call("archive", "approve", run, "--as", "bob")[0] == 0
    to = [f"--to=a=posix:{beamtime}/tape_a", f"--to=b=posix:{beamtime}/alias"]
    status, found, _ = call("archive", "execute", run, *to, "--execute", made["plan_id"])
    assert (status, codes(found)) == (3, {"R07"})
