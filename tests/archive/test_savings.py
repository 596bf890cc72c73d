"""Every byte is counted once, and nothing is called saved that is not gone by a ticket."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from audited import true_labels
from beamtimes import DAY_NS, POOL, Beamtime, Clock
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import blosc
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.archive.rules.policy import Disposition, Policy, Release
from sfxreduce.archive.savings.alternatives import SAMPLE_EVENTS
from sfxreduce.archive.savings.costs import TB, Amounts, Range, Rates, cost_of
from sfxreduce.archive.savings.disk import walk_files
from sfxreduce.archive.savings.figures import bars_svg
from sfxreduce.archive.savings.rates import parse_rates, shipped_rates
from sfxreduce.archive.savings.report import report_savings
from sfxreduce.archive.savings.sums import Savings
from sfxreduce.archive.savings.values import Part, RunSavings, Weight
from sfxreduce.archive.steps import release as releasing
from sfxreduce.archive.steps.hold import add_hold
from sfxreduce.audit.bound import conclude
from sfxreduce.audit.certificate import Certificate
from sfxreduce.decisions.decide import Decision
from sfxreduce.decisions.ledger import read_ledger
from sfxreduce.decisions.threshold import Promise
from sfxreduce.errors import SchemaError
from sfxreduce.io.chunks.shards import TileCodec
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_table
from sfxreduce.pipeline.audit import audit_certify, audit_draw
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs
from sfxreduce.run.run import Run
from sfxreduce.scorers.peaks.finder import PeakScorer
from sfxreduce_cli.main import main

ODD = (4, 7)
"""Events that show nothing at all, which no scorer may reject."""


def odd_run(seed: int) -> Run:
    run = planted_run(n_events=40, seed=seed)
    assert isinstance(run.source, ArrayFrames)
    run.source.frames[list(ODD)] = 7
    return run


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs of 40 events; the last one was not filtered, and the second has a CXI file."""
    root = tmp_path_factory.mktemp("savings")
    for n in range(4):
        run = root / f"r{n:04}.zarr"
        ingest_run(odd_run(n), out=run, pool=POOL)
        if n < 3:
            outputs = Outputs(
                store=root / f"r{n:04}_hits.zarr",
                cxi=root / "r0001_hits.cxi" if n == 1 else None,
                cxi_without_geometry=True,
            )
            filter_run(
                open_run(run),
                settings=FilterSettings(scorer=BrightestPixel()),
                outputs=outputs,
                pool=POOL,
            )
    return root


@pytest.fixture
def beamtime(filtered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Beamtime:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    root = tmp_path / "beamtime"
    shutil.copytree(filtered, root)
    for pool in ("tape_a", "tape_b"):
        (root / pool).mkdir()
    newest = max(path.stat().st_mtime_ns for path in root.rglob("*"))
    return Beamtime(root, Clock(newest + DAY_NS))


@dataclass
class Told:
    """What a command printed."""

    status: int
    out: str
    err: str

    @property
    def facts(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Told]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*words: object) -> Told:
        monkeypatch.setattr(sys, "argv", ["sfxreduce", "report", "savings", *map(str, words)])
        status = 0
        try:
            main()
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return Told(status, printed.out, printed.err)

    return run


def walked(paths: Sequence[str | Path]) -> dict[str, int]:
    """Bytes and files, by another walk than the one that is tested."""
    seen: dict[tuple[int, int], int] = {}
    for path in map(Path, paths):
        for place in (path, *path.rglob("*")):
            if place.is_file() and not place.is_symlink():
                facts = place.lstat()
                seen[facts.st_dev, facts.st_ino] = facts.st_size
    return {"bytes": sum(seen.values()), "files": len(seen)}


def check_sums(facts: Any) -> None:
    """Parts make the whole, and runs make experiments, and all is what the disk holds."""
    assert facts["total"] == facts["site"]["total"] == walked(facts["paths"])
    for group in (facts["site"], *facts["experiments"], *facts["runs"]):
        for kind in ("bytes", "files"):
            assert sum(part[kind] for part in group["parts"].values()) == group["total"][kind]
            assert all(part[kind] >= 0 for part in group["parts"].values())
    for kind in ("bytes", "files"):
        for groups in (facts["runs"], facts["experiments"]):
            total = sum(group["total"][kind] for group in groups) + facts["stray"][kind]
            assert total == facts["total"][kind]


def of(savings: Savings, run: Path) -> RunSavings:
    return next(found for found in savings.runs if found.run == str(run))


def weighed(beamtime: Beamtime, **options: Any) -> Savings:
    found = report_savings(root=beamtime.root, clock=beamtime.clock, **options)
    check_sums(json.loads(json.dumps(found.to_json())))
    return found


def test_a_report_sums_exactly_to_the_bytes_on_the_disk(beamtime: Beamtime, call: Call) -> None:
    for n in range(2):
        beamtime.all_of(n, certificate=beamtime.certificate(n))
    root = beamtime.root
    (root / "notes.txt").write_text("stray")
    (root / "deeper" / "still" / "more" / "far").mkdir(parents=True)
    (root / "deeper" / "still" / "more" / "far" / "file").write_bytes(b"x" * 1000)
    os.link(root / "notes.txt", root / "again.txt")
    (root / "link").symlink_to(beamtime.run(0), target_is_directory=True)
    told = call("--root", root, "--json")
    assert told.status == 0, told.err
    check_sums(told.facts)
    assert told.facts["paths"] == [str(root)]
    assert told.facts["total"] == walked([root])
    assert len(told.facts["runs"]) == 4
    parts = told.facts["site"]["parts"]
    assert parts["archive_copies"] == walked([root / "tape_a", root / "tape_b"])
    cxi = (root / "r0001_hits.cxi").stat().st_size
    assert parts["extra_copies"] == {"bytes": cxi, "files": 1}
    assert parts["raw"] == walked([beamtime.run(n) for n in range(4)])
    # The certificates lie there, too, and belong to no run where they are.
    strays = {"notes.txt", "certificate_0.json", "certificate_1.json"}
    expected = sum((root / name).stat().st_size for name in strays) + 1000
    assert told.facts["stray"] == {"bytes": expected, "files": 4}


def test_runs_by_name_sum_to_what_lies_at_the_paths_that_are_told(
    beamtime: Beamtime, call: Call
) -> None:
    beamtime.all_of(1)
    runs = sorted([*beamtime.root.glob("r000[12]*.zarr"), beamtime.run(1)])
    told = call(*runs, "--sample", 0, "--json")
    assert told.status == 0, told.err
    check_sums(told.facts)
    assert [run["run"] for run in told.facts["runs"]] == [str(beamtime.run(n)) for n in (1, 2)]
    outputs = [run["output"] for run in told.facts["runs"]]
    # The tree was copied: what an output names as its source lies elsewhere, and its like here.
    assert outputs == [str(beamtime.hits(1)), str(beamtime.hits(2))]
    away = beamtime.root / "away"
    away.mkdir()
    beamtime.hits(2).rename(away / "hits.zarr")
    assert call(beamtime.run(2), "--json").facts["runs"][0]["output"] is None
    told = call(beamtime.run(2), "--hits", away / "hits.zarr", "--sample", 0, "--json")
    assert told.facts["runs"][0]["output"] == str(away / "hits.zarr")
    assert told.facts["paths"] == sorted([str(away / "hits.zarr"), str(beamtime.run(2))])
    check_sums(told.facts)


def test_frames_are_told_apart_to_the_byte(filtered: Path) -> None:
    hits = filtered / "r0000_hits.zarr"
    found = of(report_savings([filtered / "r0000.zarr"], sample=0), filtered / "r0000.zarr")
    made = read_ledger(open_table(hits, "ledger"), where="ledger")
    kept = open_table(hits)["source_index"].values
    expected = {Part.HITS: 0, Part.UNDECIDED: 0}
    tiles = ZarrFrames(path=str(hits)).encoded(range(len(kept)))
    for event, encoded in zip(kept, tiles, strict=True):
        part = Part.HITS if made.decision[event] == Decision.HIT else Part.UNDECIDED
        expected[part] += sum(len(tile or b"") for tile in encoded)
    audit = ZarrFrames(path=str(hits / "audit"))
    expected[Part.AUDIT_SET] = sum(
        len(tile or b"") for event in audit.encoded(range(audit.n_events)) for tile in event
    )
    assert found.undecided == len(ODD)
    assert all(expected.values())
    assert {part: found.parts[part].bytes for part in expected} == expected
    frames = sum(expected.values())
    assert found.parts[Part.SIDECARS].bytes == walked([hits])["bytes"] - frames


def test_runs_of_hdf5_files_are_weighed_too(tmp_path: Path) -> None:
    run = planted_run(n_events=20)
    for name in ("a.h5", "b.h5", "c.cxi"):
        with h5py.File(tmp_path / name, "w") as file:
            frames = run.source.read(range(20)).pixels
            file.create_dataset("/entry/data/data", data=frames, chunks=(1, *frames.shape[1:]))
    for paths, out in (([tmp_path / "a.h5", tmp_path / "b.h5"], "ab"), ([tmp_path / "c.cxi"], "c")):
        outputs = Outputs(store=tmp_path / f"{out}.zarr")
        filter_run(
            open_run(paths),
            settings=FilterSettings(scorer=BrightestPixel()),
            outputs=outputs,
            pool=POOL,
        )
    found = report_savings(root=tmp_path, sample=10)
    check_sums(json.loads(json.dumps(found.to_json())))
    assert found.stray.files == 0
    # The frames of the source have the name of an output; they are no copy of its hits.
    assert [r.parts[Part.RAW] for r in found.runs] == [
        Weight(**walked([tmp_path / "a.h5", tmp_path / "b.h5"])),
        Weight(**walked([tmp_path / "c.cxi"])),
    ]
    assert [r.problem for r in found.runs] == ["", ""]
    assert found.runs[0].alternatives is None
    single = found.runs[1].alternatives
    assert single is not None
    assert (single.exact, single.stored_bytes) == (False, round(single.raw_bytes / 2))


def test_a_file_of_several_names_counts_once_for_what_it_is_first(beamtime: Beamtime) -> None:
    before = weighed(beamtime)
    shard = next(p for p in (beamtime.run(0) / "frames" / "c").rglob("*") if p.is_file())
    os.link(shard, beamtime.run(0).with_name("r0000.zarr.evidence-of-old"))
    beamtime.plan(0)
    os.link(shard, beamtime.subject(0).evidence / "shard")
    after = weighed(beamtime)
    assert after.stray.files == before.stray.files
    assert of(after, beamtime.run(0)).parts[Part.RAW] == of(before, beamtime.run(0)).parts[Part.RAW]


def test_only_what_a_ticket_names_and_is_gone_is_realised(beamtime: Beamtime) -> None:
    run = beamtime.run(0)
    raw = walked([run])["bytes"]
    beamtime.all_of(0)
    found = of(weighed(beamtime), run).freed
    assert (found.realised, found.potential, found.ready) == (0, raw, raw)
    beamtime.release(0)
    found = of(weighed(beamtime), run).freed
    assert (found.realised, found.potential, found.ready) == (0, raw, raw)
    beamtime.clock.wait(days=2)
    found = of(weighed(beamtime), run).freed
    assert (found.potential, found.ready) == (raw, 0)
    shards = [p for p in (run / "frames" / "c").rglob("*") if p.is_file()]
    gone = walked(shards)["bytes"]
    moved = beamtime.root / "elsewhere"
    moved.mkdir()
    for number, shard in enumerate(shards):
        shard.rename(moved / str(number))
    # What lies there under another name takes as much of the disk as before.
    assert of(weighed(beamtime), run).freed.realised == 0
    shutil.rmtree(moved)
    found = of(weighed(beamtime), run).freed
    assert (found.realised, found.potential) == (gone, raw - gone)
    shutil.rmtree(run)
    after = weighed(beamtime)
    found = of(after, run).freed
    assert (found.realised, found.potential, found.ready) == (raw, 0, 0)
    group = after.alone(of(after, run))
    added = sum(group.parts[part].bytes for part in Part) - group.parts[Part.ARCHIVE_COPIES].bytes
    assert group.realised.disk_bytes == raw - added
    assert group.realised.tape_bytes == walked([beamtime.root / "tape_a"])["bytes"] * 2


def test_what_is_gone_without_a_ticket_is_no_saving(beamtime: Beamtime) -> None:
    beamtime.all_of(0)
    shutil.rmtree(beamtime.run(0))
    shutil.rmtree(beamtime.run(3))
    found = weighed(beamtime)
    assert found.site.freed.realised == 0
    assert of(found, beamtime.run(0)).freed.potential == 0


def test_a_ticket_that_was_revoked_frees_nothing(beamtime: Beamtime) -> None:
    beamtime.all_of(0)
    beamtime.release(0)
    releasing.cancel_run(beamtime.subject(0))
    shutil.rmtree(beamtime.run(0))
    found = of(weighed(beamtime), beamtime.run(0)).freed
    assert (found.realised, found.potential) == (0, 0)


def test_evidence_that_was_changed_frees_nothing(beamtime: Beamtime) -> None:
    beamtime.all_of(0)
    beamtime.release(0)
    shutil.rmtree(beamtime.run(0))
    ticket = beamtime.subject(0).evidence / "release-ticket.json"
    ticket.write_text(ticket.read_text().replace('"bytes":', '"bytes":1'))
    found = of(weighed(beamtime), beamtime.run(0))
    assert found.freed.realised == 0
    assert "is not what the journal says" in found.problem


def test_what_may_not_leave_the_disk_is_no_potential(beamtime: Beamtime) -> None:
    beamtime.plan(0)
    beamtime.plan(1, Policy(release=Release(disposition=Disposition.KEEP)))
    beamtime.plan(2)
    found = weighed(beamtime)
    raw = [walked([beamtime.run(n)])["bytes"] for n in range(4)]
    assert [of(found, beamtime.run(n)).freed.potential for n in range(4)] == [raw[0], 0, raw[2], 0]
    assert found.site.freed.ready == 0
    # Nothing is on tape yet: two copies would have to be written.
    plan = beamtime.subject(0).look().plan
    assert plan is not None
    assert plan.archive_bytes > raw[0], "small files go in tars"
    assert of(found, beamtime.run(0)).freed.tape_to_come == 2 * plan.archive_bytes
    add_hold(beamtime.subject(0), reason="thesis", authority="pi")
    (beamtime.run(2) / "frames" / "zarr.json").write_text("{}")
    found = weighed(beamtime)
    assert found.site.freed.potential == 0
    notes = [" ".join(of(found, beamtime.run(n)).notes) for n in range(4)]
    expected = ("held", "the policy keeps it", "the run changed", "no plan")
    assert all(word in note for word, note in zip(expected, notes, strict=True))


def test_stores_in_the_evidence_are_frames_and_no_sidecars(beamtime: Beamtime) -> None:
    before = of(weighed(beamtime), beamtime.run(0)).parts
    beamtime.plan(0, Policy(release=Release(disposition=Disposition.TAPE_REJECTS)))
    found = of(weighed(beamtime), beamtime.run(0)).parts
    rejects = ZarrFrames(path=str(beamtime.subject(0).evidence / "rejects.zarr"))
    tiles = rejects.encoded(range(rejects.n_events))
    n_bytes = sum(len(tile or b"") for event in tiles for tile in event)
    assert found[Part.EXTRA_COPIES].bytes == n_bytes > 0
    assert found[Part.SIDECARS].bytes > before[Part.SIDECARS].bytes
    for part in (Part.RAW, Part.HITS, Part.UNDECIDED, Part.AUDIT_SET):
        assert found[part] == before[part]


def test_an_archive_that_cannot_be_walked_is_believed_by_its_receipts(beamtime: Beamtime) -> None:
    beamtime.all_of(0)
    raw = walked([beamtime.run(0)])["bytes"]
    sent = walked([beamtime.root / "tape_a"])["bytes"]
    assert raw < sent < 1.2 * raw, "small files go in tars"
    found = of(weighed(beamtime), beamtime.run(0)).freed
    assert (found.tape, found.unwalked, found.tape_to_come) == (2 * sent, 0, 0)
    shutil.rmtree(beamtime.root / "tape_b")
    run = of(weighed(beamtime), beamtime.run(0))
    assert (run.freed.tape, run.freed.unwalked, run.freed.tape_to_come) == (2 * sent, sent, 0)
    assert run.parts[Part.ARCHIVE_COPIES].bytes == sent
    assert any("'b' cannot be looked at" in note for note in run.notes)


def test_a_run_without_an_output_has_none_and_says_so(beamtime: Beamtime) -> None:
    found = of(weighed(beamtime), beamtime.run(3))
    assert (found.output, found.problem, found.events) == (None, "", 0)
    assert {part for part, weight in found.parts.items() if weight.bytes} == {Part.RAW}
    assert any(note.startswith("no output") for note in found.notes)
    assert found.lost.told == "nothing was rejected: there is no output"


DAMAGE = {
    "a shard that was cut": lambda hits: os.truncate(shard_of(hits), 10),
    "a shard that is missing": lambda hits: shard_of(hits).unlink(),
    "an index that lies": lambda hits: spoil_index(shard_of(hits)),
    "a ledger that is gone": lambda hits: shutil.rmtree(hits / "ledger"),
    "a manifest that was changed": lambda hits: (hits / "manifest" / "zarr.json").write_text("{"),
    "no manifest at all": lambda hits: shutil.rmtree(hits / "manifest"),
    "no metadata": lambda hits: (hits / "zarr.json").write_text("nothing"),
}


def shard_of(store: Path) -> Path:
    return next(p for p in (store / "frames" / "c").rglob("*") if p.is_file())


def spoil_index(shard: Path) -> None:
    data = bytearray(shard.read_bytes())
    data[-30] ^= 0xFF
    shard.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_output_is_one_line_and_its_bytes_are_counted(
    damage: str, beamtime: Beamtime, call: Call
) -> None:
    beamtime.plan(0)
    sound = of(weighed(beamtime), beamtime.run(0)).parts
    DAMAGE[damage](beamtime.hits(0))
    told = call("--root", beamtime.root, "--json")
    assert (told.status, told.err) == (0, "")
    check_sums(told.facts)
    runs = {run["run"]: run for run in told.facts["runs"]}
    assert len(runs) == 4
    problem = runs[str(beamtime.run(0))]["problem"]
    assert problem
    assert "\n" not in problem
    assert "Traceback" not in problem
    assert [run["problem"] for name, run in runs.items() if name != str(beamtime.run(0))] == [
        None
    ] * 3
    assert runs[str(beamtime.run(0))]["parts"]["raw"]["bytes"] == sound[Part.RAW].bytes


def test_a_store_that_nobody_can_read_is_listed_by_itself(beamtime: Beamtime) -> None:
    (beamtime.hits(2) / "manifest" / "zarr.json").write_text("{")
    found = of(weighed(beamtime), beamtime.hits(2))
    assert "manifest" in found.problem
    assert found.parts.keys() == {Part.UNASSIGNED}


def certified(hits: Path, out: Path) -> Certificate:
    """Certificate at another confidence than 95 %, by an audit of some of the rejected events."""
    promise = Promise(max_loss=0.9, confidence=0.8)
    draw = audit_draw(hits, nonce="dice", promise=promise, rejects=12, kept=14)
    labels = true_labels(draw, range(0, 40, 3))
    return audit_certify(hits, draw, labels, promise=promise, out=out)


def test_the_hits_that_may_be_lost_stand_beside_the_savings(beamtime: Beamtime) -> None:
    certificates = [
        certified(beamtime.hits(n), beamtime.root / f"certificate_{n}.json") for n in range(2)
    ]
    beamtime.plan(0, certificate=beamtime.root / "certificate_0.json")
    for n, laid in ((1, 1), (2, 1)):
        beamtime.subject(n).evidence.mkdir()
        # One of another run proves nothing; one that is only laid there is as good as its counts.
        shutil.copy(
            beamtime.root / f"certificate_{laid}.json",
            beamtime.subject(n).evidence / "certificate.json",
        )
    found = weighed(beamtime)
    bounds = []
    for n, made in enumerate(certificates):
        lost = of(found, beamtime.run(n)).lost
        expected = conclude(made.counted, method=made.method, confidence=0.95)
        assert lost.rejected == made.subject.rejected
        assert (lost.missed_upper, lost.loss_upper) == (expected.missed_upper, expected.loss_upper)
        assert expected.missed_upper > made.finding.missed_upper
        bounds.append(expected.missed_upper)
    assert of(found, beamtime.run(2)).lost.missed_upper is None
    assert "not of this output" in of(found, beamtime.run(2)).lost.told
    assert (found.site.missed_upper, found.site.unbounded) == (sum(bounds), 1)
    assert str(of(found, beamtime.run(2)).lost.rejected) in found.site.missed_told


def test_two_runs_of_one_experiment_are_one_group(beamtime: Beamtime) -> None:
    found = weighed(beamtime)
    assert [group.name for group in found.experiments] == ["planted"]
    assert found.experiments[0].total.bytes + found.stray.bytes == found.site.total.bytes


def test_no_pixel_is_read_to_sum_up_runs(
    beamtime: Beamtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a frame was read")

    for name in ("decode", "decode_many"):
        monkeypatch.setattr(TileCodec, name, refuse)
    found = weighed(beamtime)
    assert len(found.runs) == 4
    assert all(run.alternatives is None for run in found.runs)


def test_alternatives_are_what_packing_and_counting_by_hand_give(filtered: Path) -> None:
    path, hits = filtered / "r0000.zarr", filtered / "r0000_hits.zarr"
    found = of(report_savings([path], hits=[hits], sample=1000), path).alternatives
    assert found is not None
    run = open_run(path)
    frames = run.source.read(range(40)).pixels
    packer = blosc.Blosc(cname="zstd", clevel=5, shuffle=blosc.BITSHUFFLE)
    # A checksum of four bytes goes with every frame.
    assert found.recoded_bytes == sum(len(packer.encode(f.astype("<i2"))) + 4 for f in frames)
    source = ZarrFrames(path=str(path))
    stored = sum(len(t or b"") for event in source.encoded(range(40)) for t in event)
    assert (found.stored_bytes, found.exact) == (stored, True)
    by_peaks = PeakScorer()(frames, run.detector) >= PeakScorer().min_peaks
    made = read_ledger(open_table(hits, "ledger"), where="ledger")
    kept = made.decision == Decision.HIT
    assert (found.sampled, found.read) == (40, 40)
    assert found.peak_hits == np.count_nonzero(by_peaks)
    assert found.hits == np.count_nonzero(kept)
    assert found.hits_lost == np.count_nonzero(kept & ~by_peaks) > 0


def test_a_sample_is_the_same_every_time_and_only_of_few_runs(filtered: Path, call: Call) -> None:
    runs = [filtered / f"r{n:04}.zarr" for n in range(4)]
    one = report_savings(runs[:1], sample=9)
    assert one.to_json() == report_savings(runs[:1], sample=9).to_json()
    assert one.runs[0].alternatives is not None
    assert one.runs[0].alternatives.sampled == 9
    assert SAMPLE_EVENTS == 100
    assert all(run.alternatives for run in report_savings(runs).runs)
    assert not any(run.alternatives for run in report_savings(root=filtered).runs)
    told = call(runs[0], "--sample", 0, "--json")
    assert told.facts["runs"][0]["alternatives"] is None


def test_a_run_that_was_released_has_no_alternatives(beamtime: Beamtime) -> None:
    beamtime.all_of(0)
    beamtime.release(0)
    shutil.rmtree(beamtime.run(0))
    found = report_savings([beamtime.run(0)], clock=beamtime.clock).runs[0]
    assert found.alternatives is None
    assert found.problem == ""
    assert any("not on the disk" in note for note in found.notes)


numbers = st.floats(-1e6, 1e6)
ranges = st.tuples(numbers, numbers, numbers).map(
    lambda three: Range(**dict(zip(("low", "mid", "high"), sorted(three), strict=True)))
)


@given(ranges, ranges, st.floats(0, 1), st.floats(0, 1))
def test_a_range_holds_whatever_its_parts_may_be(
    one: Range, other: Range, here: float, there: float
) -> None:
    a = one.low + here * (one.high - one.low)
    b = other.low + there * (other.high - other.low)
    for found, value in ((one + other, a + b), (one - other, a - b), (one * other, a * b)):
        slack = 1e-9 * (1 + abs(value) + abs(found.low) + abs(found.high))
        assert found.low - slack <= value <= found.high + slack


def test_money_is_bytes_by_years_by_rates_less_what_it_took() -> None:
    rates = parse_rates(without_seconds(shipped_text()), where="x")
    amounts = Amounts(disk_bytes=100 * TB, tape_bytes=200 * TB, events=3_600_000)
    found = cost_of(amounts, rates)
    assert found.compute is None
    assert found.disk.mid == pytest.approx(100 * 60 * 2)
    assert found.tape.mid == pytest.approx(200 * 10.2 * 10)
    assert found.net.mid == pytest.approx(found.disk.mid - found.tape.mid)
    assert found.net.low == pytest.approx(100 * 18 * 0.33 - 200 * 12 * 10)
    seconds = Range.exactly(0.5)
    compute = rates.compute.model_copy(update={"core_seconds_per_event": seconds})
    known = cost_of(amounts, rates.model_copy(update={"compute": compute}))
    assert known.compute is not None
    assert known.compute.mid == pytest.approx(500 * 0.03)
    assert known.net.mid == pytest.approx(found.net.mid - known.compute.mid)
    assert known.kg_co2e.mid == pytest.approx(found.kg_co2e.mid - 500 * 0.01 * 0.3)


def without_seconds(text: str) -> str:
    found = re.sub(r"(?m)^core_seconds_per_event.*\n", "", text)
    assert found != text
    return found


def shipped_text() -> str:
    from importlib.resources import files

    return files("sfxreduce.archive.rules").joinpath("presets", "rates.toml").read_text("utf-8")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("per_tb_year", "per_tb_yaer", "this key is not known|Field required"),
        ("low = 18.0", "low = 180.0", "low <= mid <= high"),
        ("low = 18.0", "low = -18.0", "at least 0"),
        ("low = 18.0", 'low = "18"', "valid number"),
        ('"USD"', '"dollars"', "pattern"),
        ("[disk]", "[disk", "expected TOML"),
    ],
)
def test_rates_that_are_not_understood_are_refused(old: str, new: str, told: str) -> None:
    assert parse_rates(shipped_text(), where="x") == shipped_rates()
    with pytest.raises(SchemaError, match=told):
        parse_rates(shipped_text().replace(old, new), where="x")


def test_rates_of_a_site_are_used_and_shown(beamtime: Beamtime, call: Call) -> None:
    file = beamtime.root / "rates.toml"
    file.write_text(shipped_text().replace('"USD"', '"CHF"'))
    told = call("--root", beamtime.root, "--rates", file, "--json")
    cost = told.facts["site"]["savings"]["realised"]["cost"]
    assert told.facts["rates"]["currency"] == "CHF"
    assert cost["net_of_compute"] is True
    assert cost["compute"]["mid"] == pytest.approx(120 * 0.011 / 3600 * 0.03)
    assert "CHF" in call("--root", beamtime.root, "--rates", file).out


def test_what_computing_took_is_not_known_if_nobody_says(beamtime: Beamtime, call: Call) -> None:
    file = beamtime.root / "rates.toml"
    file.write_text(without_seconds(shipped_text()))
    told = call("--root", beamtime.root, "--rates", file, "--json")
    cost = told.facts["site"]["savings"]["realised"]["cost"]
    assert (cost["net_of_compute"], cost["compute"]) == (False, None)


def test_the_page_shows_exact_bytes_and_needs_no_network(beamtime: Beamtime, call: Call) -> None:
    beamtime.all_of(0)
    beamtime.release(0)
    shutil.rmtree(beamtime.run(0))
    shard_of(beamtime.hits(0)).unlink()
    out = beamtime.root / "page.html"
    told = call("--root", beamtime.root, "--sample", 5, "--out", out, "--json")
    assert told.status == 0, told.err
    page = out.read_text()
    for part in told.facts["site"]["parts"].values():
        assert f"<td>{part['bytes']:,}</td>" in page
    assert f"{told.facts['total']['bytes']:,}" in page
    assert page.count("<svg") == 2
    assert not re.search("https?://", page.replace("http://www.w3.org", ""))
    assert "<script" not in page
    assert "verify --quick" in page
    assert "not known" in page
    again = call("--root", beamtime.root, "--out", out)
    assert again.status == 1
    assert out.read_text() == page
    assert call("--root", beamtime.root, "--out", out, "--overwrite").status == 0


def test_a_bar_is_as_long_as_its_run_however_many_there_are() -> None:
    runs = tuple(
        RunSavings(
            run=f"/r{n}", experiment="e", state="REGISTERED", parts={Part.RAW: Weight(bytes=n)}
        )
        for n in range(1, 101)
    )
    savings = Savings(runs=runs, rates=shipped_rates(), paths=())
    picture = bars_svg([savings.alone(run) for run in runs], [run.run for run in runs])
    drawn = re.findall(r'width="([0-9.]+)" .*?<title>raw: ([0-9,]+) bytes', picture)
    sizes = [int(told.replace(",", "")) for _, told in drawn]
    # The largest first; the others are summed up, and nothing is left out.
    assert sizes == [*range(100, 60, -1), sum(range(1, 61))]
    widths = [float(width) for width, _ in drawn]
    longest = widths[0]
    assert widths[-1] == longest
    for size, width in zip(sizes[:-1], widths[:-1], strict=True):
        assert width == pytest.approx(longest * size / 100, abs=0.1)
    assert savings.site.total.bytes == sum(sizes)


def test_odd_names_are_shown_and_obeyed_by_no_browser(tmp_path: Path, call: Call) -> None:
    root, out = tmp_path / "runs", tmp_path / "page.html"
    root.mkdir()
    for name in ("<b>&.zarr", os.fsdecode(b"\xff.zarr")):
        ingest_run(planted_run(n_events=3), out=root / name, pool=POOL)
    told = call("--root", root, "--out", out, "--json")
    assert told.status == 0, told.err
    check_sums(told.facts)
    assert len(told.facts["runs"]) == 2
    page = out.read_text("utf-8")
    assert "&lt;b&gt;&amp;.zarr" in page
    assert "<b>&.zarr" not in page


def test_what_people_read_says_the_same(beamtime: Beamtime, call: Call) -> None:
    told = call("--root", beamtime.root)
    total = walked([beamtime.root])
    assert f"4 runs: {total['bytes']:,} bytes in {total['files']:,} files" in told.out
    assert "not known for" in told.out


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([], 2),
        (["r0000.zarr", "--root", "."], 2),
        (["--root", ".", "--hits", "r0000_hits.zarr"], 2),
        (["r0000.zarr", "r0001.zarr", "--hits", "r0000_hits.zarr"], 2),
        (["r0000.zarr", "r0001.zarr", "--evidence", "e"], 2),
        (["nothing.zarr"], 1),
        (["--root", "nothing"], 1),
        (["r0000.zarr", "--rates", "nothing.toml"], 1),
        (["r0000.zarr", "--sample", "0", "--out", "r0000.zarr/page.html"], 2),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_status(
    words: list[str], status: int, beamtime: Beamtime, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(beamtime.root)
    before = walked([beamtime.root])
    told = call(*words, "--json")
    assert told.status == status
    assert told.err.count("\n") == 1
    assert told.facts["exit_status"] == status
    assert walked([beamtime.root]) == before


def test_a_walk_follows_no_link_and_tells_what_it_cannot_see(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(b"12")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "file")
    (tmp_path / "a" / "loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "a" / "pipe")
    assert [file.path.name for file in walk_files(tmp_path)] == ["file"]
    assert list(walk_files(tmp_path / "nothing")) == []


def test_a_folder_that_nobody_may_enter_is_told_and_the_rest_is_summed(
    beamtime: Beamtime, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = beamtime.root / "lost+found"
    inside = beamtime.run(3) / "frames"
    for folder in (secret, inside):
        folder.mkdir(exist_ok=True)
    expected = walked([beamtime.root])["bytes"] - walked([inside])["bytes"]
    scandir = os.scandir

    def guarded(path: Any = ".") -> Any:
        if os.fspath(path) in {str(secret), str(inside)}:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    told = call("--root", beamtime.root, "--json")
    assert told.status == 0, told.err
    assert len(told.facts["unseen"]) == 2
    assert told.facts["total"]["bytes"] == expected
    problem = next(r["problem"] for r in told.facts["runs"] if r["run"] == str(beamtime.run(3)))
    assert "Permission denied" in problem
    assert "not seen" in call("--root", beamtime.root).out


def test_rates_that_no_float_could_multiply_are_refused() -> None:
    # Their product is infinite, which ended the report in a traceback.
    facts = shipped_rates().model_dump(mode="json")
    facts["disk"]["years"]["high"] = facts["disk"]["per_tb_year"]["high"] = 1e200
    with pytest.raises(ValueError, match="at most 1e"):
        Rates.model_validate_json(json.dumps(facts))
