"""Small files go to the archive in packages, and every one of them comes back out of them."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bagit
import h5py
import numpy as np
import pytest
from archived import Call, snapshot
from beamtimes import POOL, Beamtime, act_as_the_facility, codes
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.archive.evidence.documents import PlanPaper, TicketPaper, paper_bytes, read_paper
from sfxreduce.archive.rules.policy import Disposition, Policy, Release
from sfxreduce.archive.rules.states import State
from sfxreduce.archive.steps import restore as restoring
from sfxreduce.archive.steps.packing import Tars
from sfxreduce.archive.tape.backends.posix import PosixBackend
from sfxreduce.errors import SourceError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs


def packing(*, kilobytes: float) -> Policy:
    """Packages of this size; nothing has to wait."""
    return Policy(
        release=Release(
            disposition=Disposition.TAPE_RAW,
            grace_days=0,
            min_retention_days=0,
            package_gb=kilobytes / 1e6,
        )
    )


@pytest.fixture
def shards(beamtime: Beamtime, monkeypatch: pytest.MonkeyPatch) -> Beamtime:
    """The first run has a shard for every two events."""
    monkeypatch.setattr("sfxreduce.io.chunks.layout.MAX_EVENTS_PER_SHARD", 2)
    for path in (beamtime.run(), beamtime.hits()):
        shutil.rmtree(path)
    ingest_run(planted_run(n_events=40, seed=0), out=beamtime.run(), pool=POOL)
    outputs = Outputs(store=beamtime.hits())
    filter_run(
        open_run(beamtime.run()),
        settings=FilterSettings(scorer=BrightestPixel()),
        outputs=outputs,
        pool=POOL,
    )
    beamtime.clock.wait(days=1)
    return beamtime


def plan_of(beamtime: Beamtime, n: int = 0) -> PlanPaper:
    data = (beamtime.subject(n).evidence / "plan.json").read_bytes()
    return read_paper(PlanPaper, data, where="plan.json")


def size_of_shards(beamtime: Beamtime) -> int:
    files = [path for path in (beamtime.run() / "frames" / "c").rglob("*") if path.is_file()]
    assert len(files) == 20
    return max(path.stat().st_size for path in files)


def on_tape(beamtime: Beamtime, pool: str) -> dict[str, bytes]:
    """What lies in a pool, by its path after the plan's prefix."""
    root = beamtime.root / f"tape_{pool}" / pool / plan_of(beamtime).prefix
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def ten_shards_a_package(beamtime: Beamtime) -> Policy:
    """All files of the run are small enough to be packed, and the shards fill two packages."""
    return packing(kilobytes=size_of_shards(beamtime) * 10.5 / 1000)


def test_a_plan_names_its_packages_and_each_file_is_in_one_or_goes_as_it_is(
    shards: Beamtime,
) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    plan = plan_of(shards)
    assert sum("columns" not in package.name for package in plan.packages) == 2
    packed = [f"raw/{file.path}" for package in plan.packages for file in package.files]
    loose = [parcel.path for parcel in plan.parcels[len(plan.packages) :]]
    assert sorted(packed + loose) == sorted(file.path for file in plan.payload)
    for package in plan.packages:
        assert sum(f.size for f in package.files) <= plan.policy.release.package_gb * 1e9
        frames = {"/frames/c/" in f"/{file.path}" for file in package.files}
        assert len(frames) == 1
    bag = shards.subject().evidence / f"plan-{plan.plan_id[:16]}"
    index = json.loads((bag / "sfxreduce-packages.json").read_text())
    assert [(p["name"], p["size"], p["sha256"]) for p in index] == [
        (p.name, p.size, p.sha256) for p in plan.packages
    ]
    assert {f"raw/{f['path']}": f["sha256"] for p in index for f in p["files"]} == {
        file.path: file.sha256 for file in plan.payload if file.path in set(packed)
    }
    for file in plan.sources:
        target = bag / "data" / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(shards.run() / file.path)
    assert bagit.Bag(str(bag)).validate() is True


def test_packages_go_to_tape_as_tars_and_a_run_comes_back_out_of_them(
    shards: Beamtime, tmp_path: Path
) -> None:
    before = snapshot(shards.run())
    whole = open_run(shards.run()).source.read(range(40)).pixels
    shards.plan(0, ten_shards_a_package(shards))
    shards.approve()
    shards.execute()
    plan, held = plan_of(shards), on_tape(shards, "a")
    assert held == on_tape(shards, "b")
    assert {path: (len(data), hashlib.sha256(data).hexdigest()) for path, data in held.items()} == {
        parcel.path: (parcel.size, parcel.sha256) for parcel in plan.parcels
    }
    assert len(held) < len(before)
    for package in plan.packages:
        tar = shards.root / "tape_a" / "a" / plan.prefix / package.name
        for file in package.files:
            assert tar.read_bytes()[file.offset :][: file.size] == before[file.path][0]
        # Any tar reads it, and it says nothing of who wrote it, or when.
        with tarfile.open(tar) as opened:
            assert {m.name: m.offset_data for m in opened} == {
                file.path: file.offset for file in package.files
            }
            assert {(m.mtime, m.uid, m.gid, m.uname) for m in opened} == {(0, 0, 0, "")}
    found = shards.recall()
    assert found.population == len(plan.parcels)
    assert f"those recalled hold {len(before)} of {len(before)} files" in found.statement
    done = shards.release()
    ticket = read_paper(TicketPaper, done.ticket.read_bytes(), where="ticket")
    assert ticket.packages == plan.packages
    assert {file.path for file in ticket.files} == set(before)
    assert snapshot(shards.run()) == before
    act_as_the_facility(shards, 0, tmp_path)
    out, hits = tmp_path / "events.zarr", tmp_path / "nothing.zarr"
    names = ["@1", "@38"]
    back = restoring.restore_run_events(
        shards.subject(), names, hits=hits, out=out, to=shards.to, pool=POOL
    )
    assert (back.from_archive, back.from_hits) == (2, 0)
    np.testing.assert_array_equal(open_run(out).source.read([0, 1]).pixels, whole[[1, 38]])
    n_bytes = restoring.restore_run(shards.subject(), out=tmp_path / "back.zarr", to=shards.to)
    assert n_bytes == sum(parcel.size for parcel in plan.parcels)
    assert {k: v[0] for k, v in snapshot(tmp_path / "back.zarr").items()} == {
        k: v[0] for k, v in before.items()
    }


def test_an_event_needs_the_columns_and_one_package_of_shards_each_recalled_once(
    shards: Beamtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.plan(0, packing(kilobytes=100 * size_of_shards(shards) / 1000))
    plan = plan_of(shards)
    # All shards would fit in one package; so this tries that the columns are apart from them.
    assert [len(package.files) for package in plan.packages][1:] == [20]
    shards.approve()
    shards.execute()
    asked: list[str] = []
    recall = PosixBackend.recall

    def counted(self: PosixBackend, path: str, into: Path, *, pool: str) -> None:
        asked.append(path.removeprefix(plan.prefix))
        recall(self, path, into, pool=pool)

    monkeypatch.setattr(PosixBackend, "recall", counted)
    shutil.rmtree(shards.run() / "frames")
    restoring.restore_run_events(
        shards.subject(),
        ["@1"],
        hits=tmp_path / "none",
        out=tmp_path / "e.zarr",
        to=shards.to,
        pool=POOL,
    )
    assert sorted(asked) == sorted(package.name for package in plan.packages)


def test_the_same_run_gives_the_same_packages_whoever_packs_it(shards: Beamtime) -> None:
    policy = ten_shards_a_package(shards)
    shards.plan(0, policy)
    first = plan_of(shards).packages
    for path in shards.run().rglob("*"):
        path.touch()
    shards.plan(0, policy)
    assert plan_of(shards).packages == first
    assert len(first) >= 3


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, n: int) -> Iterator[list[int]]:
    """Stop at the n-th rename of a file, and leave everything lying as a killed program would."""
    replace, unlink = Path.replace, Path.unlink
    count = [0]

    def dead() -> bool:
        return count[0] >= n

    def stop(self: Path, target: Any) -> Any:
        count[0] += 1
        if dead():
            raise KilledError
        return replace(self, target)

    def remove(self: Path, missing_ok: bool = False) -> None:
        if not dead():
            unlink(self, missing_ok=missing_ok)

    def leave(self: Any) -> None:
        if not dead():
            shutil.rmtree(self.name)
        self._finalizer.detach()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        patch.setattr(Path, "unlink", remove)
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", leave)
        yield count


class KilledError(BaseException):
    """The program ends here."""


def test_a_program_killed_while_it_packs_leaves_nothing_half_done_and_goes_on(
    shards: Beamtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    shards.approve()
    plan, before = plan_of(shards), snapshot(shards.run())
    expected = {parcel.path: parcel.sha256 for parcel in plan.parcels}
    left_behind, n_killed = 0, 0
    evidence = shards.subject().evidence
    for n in range(1, 200):
        with killed_at(monkeypatch, n):
            try:
                shards.execute()
            except KilledError:
                n_killed += 1
            else:
                break
        found = shards.state_of()
        assert found.state in (State.APPROVED, State.ARCHIVING, State.ARCHIVED)
        assert not {"R10", "R03"} & {refusal.code for refusal in found.refusals}
        left_behind += len(list(evidence.glob(".packing-*/*")))
        for pool in ("a", "b"):
            # What has its name on tape is whole; the rest is hidden.
            there = {k: v for k, v in on_tape(shards, pool).items() if not _hidden(k)}
            assert all(hashlib.sha256(v).hexdigest() == expected[k] for k, v in there.items())
    assert n_killed > 10
    assert left_behind
    assert shards.state_of().state is State.ARCHIVED
    assert not list(evidence.glob(".packing-*"))
    for pool in ("a", "b"):
        assert {k for k in on_tape(shards, pool) if not _hidden(k)} == set(expected)
    assert snapshot(shards.run()) == before
    shards.recall()
    assert shards.release().state is State.RELEASE_TICKETED


def _hidden(path: str) -> bool:
    return path.rpartition("/")[2].startswith(".")


def test_a_package_is_made_once_for_all_pools_and_gone_before_the_next(
    shards: Beamtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    shards.approve()
    plan, evidence = plan_of(shards), shards.subject().evidence
    put, seen = PosixBackend.put, []

    def looked(self: PosixBackend, local: Path, path: str, *, pool: str) -> Any:
        made = [(p.name, p.stat().st_ino) for p in evidence.glob(".packing-*/*")]
        if local.suffix == ".tar":
            assert made == [(local.name, local.stat().st_ino)]
            seen.append((pool, *made))
        return put(self, local, path, pool=pool)

    monkeypatch.setattr(PosixBackend, "put", looked)
    shards.execute()
    assert [pool for pool, *_ in seen] == ["a", "b"] * len(plan.packages)
    assert [made for _, made in seen[::2]] == [made for _, made in seen[1::2]]


def test_a_packed_file_that_was_touched_or_rotted_is_refused(shards: Beamtime) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    shards.approve()
    plan = plan_of(shards)
    file = shards.run() / plan.packages[-1].files[0].path
    with Tars.opened(plan, evidence=shards.subject().evidence) as tars:
        data = file.read_bytes()
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(SourceError, match="is not what was planned"):
            tars.local(plan.packages[-1].name, check=lambda paths: None)
    assert codes(shards.execute) == {"R03"}
    assert not on_tape(shards, "a")


@pytest.mark.parametrize("pools", ["a", "ab"])
def test_a_package_that_is_bad_on_tape_is_found_and_the_other_copy_is_read(
    shards: Beamtime, tmp_path: Path, pools: str
) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    shards.approve()
    shards.execute()
    package = plan_of(shards).packages[-1]
    for pool in pools:
        tar = shards.root / f"tape_{pool}" / pool / plan_of(shards).prefix / package.name
        data = bytearray(tar.read_bytes())
        data[package.files[0].offset] ^= 1
        tar.write_bytes(data)
    assert codes(shards.recall) == {"R06", "R08"}
    for file in (shards.run() / "frames" / "c").rglob("*"):
        if file.is_file():
            file.unlink()
    names = [f"@{n}" for n in range(40)]
    call: dict[str, Any] = {"hits": tmp_path / "none", "out": tmp_path / "events.zarr"}
    call |= {"to": shards.to, "pool": POOL}
    if pools == "ab":
        with pytest.raises(SourceError, match="no copy came back"):
            restoring.restore_run_events(shards.subject(), names, **call)
        return
    assert restoring.restore_run_events(shards.subject(), names, **call).from_archive == 40
    source = planted_run(n_events=40, seed=0).source
    assert isinstance(source, ArrayFrames)
    back = open_run(tmp_path / "events.zarr").source.read(range(40)).pixels
    np.testing.assert_array_equal(back, source.frames)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("packages", 0, "files", 0, "offset"), 1024),
        (("packages", 0, "size"), 10240),
        (("packages", 0, "files", 0, "sha256"), "0" * 64),
        (("packages", 0, "files", 0, "path"), "../up"),
        (("packages", 0, "files", 0, "path"), "other"),
        (("packages", 0, "name"), "../p.tar"),
        (("packages", 0, "name"), "hits/p.tar"),
    ],
)
def test_a_plan_whose_packages_do_not_fit_its_files_is_refused(
    shards: Beamtime, where: tuple[Any, ...], value: object
) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    facts = json.loads(paper_bytes(plan_of(shards)))
    *way, last = where
    place = facts
    for key in way:
        place = place[key]
    place[last] = value
    assert codes(lambda: read_paper(PlanPaper, json.dumps(facts), where="plan")) == {"R16"}


def test_a_file_is_in_one_package_only(shards: Beamtime) -> None:
    shards.plan(0, ten_shards_a_package(shards))
    facts = json.loads(paper_bytes(plan_of(shards)))
    facts["packages"] += facts["packages"][:1]
    assert codes(lambda: read_paper(PlanPaper, json.dumps(facts), where="plan")) == {"R16"}


def test_packages_take_names_that_no_file_of_the_run_has(shards: Beamtime) -> None:
    for name in ("package-00000.tar", "_package"):
        (shards.run() / name).write_bytes(b"notes")
    shards.plan(0, ten_shards_a_package(shards))
    names = [parcel.path for parcel in plan_of(shards).parcels]
    assert len(set(names)) == len(names)
    assert all(package.name.startswith("raw/__package") for package in plan_of(shards).packages)


def test_without_packages_every_file_goes_as_it_is(shards: Beamtime) -> None:
    shards.plan(0, packing(kilobytes=0))
    shards.approve()
    shards.execute()
    assert plan_of(shards).packages == ()
    assert on_tape(shards, "a") == {f"raw/{k}": v[0] for k, v in snapshot(shards.run()).items()}
    assert "Packages" not in shards.recall().statement


def test_a_run_that_is_one_file_goes_as_it_is(beamtime: Beamtime) -> None:
    source = planted_run(n_events=40, seed=0).source
    assert isinstance(source, ArrayFrames)
    run, hits = beamtime.root / "one.h5", beamtime.root / "one_hits.zarr"
    with h5py.File(run, "w") as file:
        file["entry/data/data"] = source.frames
    outputs = Outputs(store=hits)
    filter_run(
        open_run(run), settings=FilterSettings(scorer=BrightestPixel()), outputs=outputs, pool=POOL
    )
    beamtime.run = lambda n=0: run  # type: ignore[method-assign,assignment]
    beamtime.clock.wait(days=1)
    beamtime.plan(hits=hits)
    beamtime.approve()
    beamtime.execute()
    assert on_tape(beamtime, "a") == {"raw/one.h5": run.read_bytes()}
    assert beamtime.recall().bad == 0


def test_what_is_printed_names_packages_sizes_and_counts(call: Call, shards: Beamtime) -> None:
    words = ["archive", "plan", shards.run(), "--hits", shards.hits(), "--serial", "--as", "ann"]
    status, made, _ = call(*words)
    assert status == 0
    plan = plan_of(shards)
    assert made["packages"] == [
        {"name": p.name, "bytes": p.size, "files": len(p.files)} for p in plan.packages
    ]
    assert sum(p["files"] for p in made["packages"]) == made["archive_files"]
    _, out, _ = call(*words, json_too=False)
    for package in plan.packages:
        assert f"{package.name}: {len(package.files)} files, " in out
