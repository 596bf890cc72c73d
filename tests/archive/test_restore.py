"""Any event comes back by its id, bit for bit, from wherever it still is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from archived import make_files, records_of, snapshot
from bagged import read_bag
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.archive.steps.restore_events import Places, restore_events
from sfxreduce.archive.tape.backends import Backend, open_backend
from sfxreduce.archive.tape.bags import write_bag
from sfxreduce.archive.tape.holding import Holding, fetch_files
from sfxreduce.archive.tape.packages import pack
from sfxreduce.archive.tape.tars import write_package
from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.errors import ArchiveError, OutputExists, SchemaError, SourceError, UsageError
from sfxreduce.io.open import open_run
from sfxreduce.pipeline.filter import filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings, Outputs

N_EVENTS = 70


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run store, its hits, and both archived in two pools: files, and packages."""
    folder = tmp_path_factory.mktemp("made")
    serial = SerialPool()
    with pytest.MonkeyPatch.context() as patch:
        # Small frames would all be in one shard.
        patch.setattr("sfxreduce.io.chunks.layout.MAX_EVENTS_PER_SHARD", 16)
        ingest_run(planted_run(n_events=N_EVENTS), out=folder / "run.zarr", pool=serial)
    filter_run(
        open_run(folder / "run.zarr"),
        settings=FilterSettings(scorer=BrightestPixel(), audit_share=0.1),
        outputs=Outputs(store=folder / "hits.zarr"),
        pool=serial,
    )
    (folder / "tape").mkdir()
    backend = open_backend(f"posix:{folder}/tape")
    for file in records_of(folder / "run.zarr"):
        for pool in ("a", "b"):
            backend.put(folder / "run.zarr" / file.path, f"exp/r1/{file.path}", pool=pool)
    return folder


@pytest.fixture
def frames() -> np.ndarray:
    source = planted_run(n_events=N_EVENTS).source
    assert isinstance(source, ArrayFrames)
    return source.frames


def tape(made: Path) -> Backend:
    return open_backend(f"posix:{made}/tape")


def holding(made: Path, **changed: object) -> Holding:
    known = Holding(
        files=records_of(made / "run.zarr"),
        copies=((tape(made), "a"), (tape(made), "b")),
        prefix="exp/r1/",
    )
    return replace(known, **changed)  # type: ignore[arg-type]


def _positions(out: Path) -> list[int]:
    with xr.open_zarr(out, consolidated=False) as table:
        return [int(n) for n in table.source_index.values]


def assert_bits(out: Path, frames: np.ndarray, expected: list[int]) -> None:
    """The store holds exactly these events, in source order, every bit of them."""
    run = open_run(out)
    assert _positions(out) == sorted(expected)
    assert run.columns["event_id"].values.tolist() == [f"event-{n}" for n in sorted(expected)]
    reading = run.source.read(range(run.n_events))
    assert not reading.reasons.any()
    assert reading.pixels.dtype == frames.dtype
    assert reading.pixels.tobytes() == frames[sorted(expected)].tobytes()
    # And so it is for programs that know nothing of us.
    with xr.open_zarr(out, consolidated=False) as store:
        assert store.frames.values.tobytes() == frames[sorted(expected)].tobytes()


EVENTS = [40, 3, 69, 4, 0]
NAMES = [f"event-{n}" for n in EVENTS]


def test_events_come_from_the_run_while_it_is_there(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    before = snapshot(made)
    places = Places(run=(made / "run.zarr",), hits=made / "hits.zarr", archive=holding(made))
    result = restore_events(NAMES, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert (result.from_run, result.from_hits, result.from_archive) == (5, 0, 0)
    assert result.bytes_recalled == 0
    assert_bits(tmp_path / "out.zarr", frames, EVENTS)
    assert snapshot(made) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_hits_come_from_the_reduced_store_and_the_rest_from_the_archive(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    places = Places(run=(tmp_path / "gone.zarr",), hits=made / "hits.zarr", archive=holding(made))
    result = restore_events(NAMES, places=places, out=tmp_path / "out.zarr", pool=serial)
    # Every third event is a hit: 3, 69, 0. One of the others may be in the sample.
    assert result.from_run == 0
    assert result.from_hits >= 3
    assert result.from_hits + result.from_archive == 5
    assert result.from_archive >= 1
    assert_bits(tmp_path / "out.zarr", frames, EVENTS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_every_event_comes_back_from_the_archive_alone(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    names = [f"event-{n}" for n in range(N_EVENTS)]
    places = Places(archive=holding(made))
    result = restore_events(names, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert result.from_archive == N_EVENTS
    assert_bits(tmp_path / "out.zarr", frames, list(range(N_EVENTS)))


def test_every_sampled_reject_comes_back_from_the_reduced_store(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    sampled = _positions(made / "hits.zarr" / "audit")
    assert sampled
    names = [f"event-{n}" for n in sampled]
    places = Places(hits=made / "hits.zarr")
    result = restore_events(names, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert result.from_hits == len(sampled)
    assert_bits(tmp_path / "out.zarr", frames, sampled)


def test_of_a_run_store_only_the_shards_that_are_needed_are_recalled(
    made: Path, tmp_path: Path, serial: Pool
) -> None:
    asked: list[str] = []

    class Counting:
        name = "counting"

        def recall(self, path: str, into: Path, *, pool: str) -> None:
            asked.append(path)
            tape(made).recall(path, into, pool=pool)

    counting: object = Counting()
    places = Places(archive=holding(made, copies=((counting, "a"),)))
    result = restore_events(["event-1"], places=places, out=tmp_path / "out.zarr", pool=serial)
    shards = [path for path in asked if "/frames/c/" in path]
    assert len(shards) == 1
    assert len(set(asked)) == len(asked) == len(records_of(made / "run.zarr")) - _n_shards(made) + 1
    sizes = {f"exp/r1/{file.path}": file.size for file in records_of(made / "run.zarr")}
    assert result.bytes_recalled == sum(sizes[path] for path in asked)


def _n_shards(made: Path) -> int:
    return sum("frames/c/" in file.path for file in records_of(made / "run.zarr"))


def test_a_run_that_lost_shards_is_completed_from_the_archive(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    shutil.copytree(made / "run.zarr", tmp_path / "run.zarr")
    shards = sorted((tmp_path / "run.zarr" / "frames" / "c").rglob("0"))
    files = [shard for shard in shards if shard.is_file()]
    files[0].unlink()
    places = Places(run=(tmp_path / "run.zarr",), archive=holding(made))
    result = restore_events(NAMES, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert result.from_archive >= 1
    assert result.from_run + result.from_archive == 5
    assert_bits(tmp_path / "out.zarr", frames, EVENTS)


def test_a_bad_copy_is_passed_over_and_two_are_told(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    shutil.copytree(made / "tape", tmp_path / "tape")
    worn = open_backend(f"posix:{tmp_path}/tape")
    known = holding(made, copies=((worn, "a"), (worn, "b")))
    for file in (tmp_path / "tape" / "a").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    places = Places(archive=known)
    restore_events(NAMES, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert_bits(tmp_path / "out.zarr", frames, EVENTS)
    (tmp_path / "tape" / "b" / "exp" / "r1" / "zarr.json").unlink()
    with pytest.raises(SourceError, match="no copy came back as it was archived"):
        restore_events(NAMES, places=places, out=tmp_path / "again.zarr", pool=serial)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "tape"]


def test_events_come_out_of_packages(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    files = records_of(made / "run.zarr")
    target = 3 * max(file.size for file in files) // 2
    packages = pack(files, target_bytes=target, stem="exp-r1")
    assert 1 < len(packages) < len(files)
    (tmp_path / "tars").mkdir()
    (tmp_path / "tape").mkdir()
    backend = open_backend(f"posix:{tmp_path}/tape")
    tars = [
        write_package(package, source=made / "run.zarr", folder=tmp_path / "tars")
        for package in packages
    ]
    for tar in tars:
        backend.put(tmp_path / "tars" / tar.path, f"exp/{tar.path}", pool="a")
    shutil.rmtree(tmp_path / "tars")
    known = Holding(
        files=files,
        copies=((backend, "a"),),
        prefix="exp/",
        packages=tuple(zip(packages, tars, strict=True)),
    )
    places = Places(archive=known)
    result = restore_events(["event-69"], places=places, out=tmp_path / "out.zarr", pool=serial)
    assert result.bytes_recalled > 0
    assert_bits(tmp_path / "out.zarr", frames, [69])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.zarr", "tape"]


def test_a_bag_is_all_that_restore_needs_to_know(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    write_bag(
        tmp_path / "bag",
        files=records_of(made / "run.zarr"),
        source=made / "run.zarr",
        info={"External-Identifier": "exp/r1"},
        tag_files={},
    )
    places = Places(archive=holding(made, files=read_bag(tmp_path / "bag")))
    restore_events(NAMES, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert_bits(tmp_path / "out.zarr", frames, EVENTS)


def test_events_without_ids_are_named_by_their_position(
    made: Path, tmp_path: Path, serial: Pool, frames: np.ndarray
) -> None:
    places = Places(run=(tmp_path / "gone",), hits=made / "hits.zarr", archive=holding(made))
    names = ["@69", "@1", "event-3"]
    restore_events(names, places=places, out=tmp_path / "out.zarr", pool=serial)
    assert_bits(tmp_path / "out.zarr", frames, [1, 3, 69])


def test_a_cxi_run_is_recalled_whole(tmp_path: Path, serial: Pool, frames: np.ndarray) -> None:
    import h5py

    (tmp_path / "disk").mkdir()
    for part, rows in enumerate((slice(0, 30), slice(30, N_EVENTS))):
        with h5py.File(tmp_path / "disk" / f"r{part}.h5", "w") as file:
            file["entry/data/data"] = frames[rows]
    files = records_of(tmp_path / "disk")
    (tmp_path / "tape").mkdir()
    backend = open_backend(f"posix:{tmp_path}/tape")
    for file in files:
        backend.put(tmp_path / "disk" / file.path, file.path, pool="a")
    names = list(
        open_run([tmp_path / "disk" / file.path for file in files]).columns["event_id"].values
    )
    shutil.rmtree(tmp_path / "disk")
    places = Places(archive=Holding(files=files, copies=((backend, "a"),)))
    restore_events([names[45], "@2"], places=places, out=tmp_path / "out.zarr", pool=serial)
    reading = open_run(tmp_path / "out.zarr").source.read([0, 1])
    assert reading.pixels.tobytes() == frames[[2, 45]].tobytes()


def test_what_cannot_be_restored_is_said_and_nothing_is_written(
    made: Path, tmp_path: Path, serial: Pool
) -> None:
    out = tmp_path / "out.zarr"
    hits = Places(hits=made / "hits.zarr")
    with pytest.raises(SourceError, match=r"1 of 2 events .* the first is 'event-1000'"):
        restore_events(["event-0", "event-1000"], places=hits, out=out, pool=serial)
    with pytest.raises(SourceError, match="if it is a position in the run, write '@3'"):
        restore_events(["3"], places=hits, out=out, pool=serial)
    with pytest.raises(SourceError, match=r"gone\.zarr: no such file"):
        restore_events(["event-0"], places=Places(run=(tmp_path / "gone.zarr",)), out=out,
                       pool=serial)  # fmt: skip
    for events in ([], ["event-0", "event-0"]):
        with pytest.raises(UsageError, match="each named once"):
            restore_events(events, places=hits, out=out, pool=serial)
    with pytest.raises(UsageError, match="overlaps"):
        restore_events(["event-0"], places=hits, out=made / "hits.zarr" / "x", pool=serial)
    assert list(tmp_path.iterdir()) == []
    out.mkdir()
    with pytest.raises(OutputExists, match="already exists"):
        restore_events(["event-0"], places=hits, out=out, pool=serial)


def test_an_id_of_several_events_is_refused(tmp_path: Path, serial: Pool) -> None:
    run = planted_run(n_events=4)
    run.columns["event_id"].values[...] = ["a", "b", "b", "c"]
    ingest_run(run, out=tmp_path / "run.zarr", pool=serial)
    places = Places(run=(tmp_path / "run.zarr",))
    with pytest.raises(UsageError, match=r"2 events have the event_id 'b'; .* such as @1"):
        restore_events(["b"], places=places, out=tmp_path / "out.zarr", pool=serial)
    restore_events(["@1"], places=places, out=tmp_path / "out.zarr", pool=serial)
    assert _positions(tmp_path / "out.zarr") == [1]


def test_panels_come_back_too(tmp_path: Path, serial: Pool) -> None:
    run = planted_run(n_events=5, panels=3)
    ingest_run(run, out=tmp_path / "run.zarr", pool=serial)
    places = Places(run=(tmp_path / "run.zarr",))
    restore_events(["event-3"], places=places, out=tmp_path / "out.zarr", pool=serial)
    back = open_run(tmp_path / "out.zarr")
    assert back.detector.panels == run.detector.panels
    assert back.source.read([0]).pixels.tobytes() == run.source.read([3]).pixels.tobytes()


def test_files_that_were_not_archived_are_not_asked_for(made: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="it has no file 'x'"):
        fetch_files(holding(made), ["x"], into=tmp_path)
    with pytest.raises(SchemaError, match="leaves its folder"):
        holding(made, prefix="../")
    with pytest.raises(ArchiveError, match="no copy came back"):
        fetch_files(holding(made, prefix="other/"), ["zarr.json"], into=tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_is_no_run_is_not_opened(tmp_path: Path, serial: Pool) -> None:
    files = make_files(tmp_path / "disk", {"notes.txt": b"nothing"})
    (tmp_path / "tape").mkdir()
    backend = open_backend(f"posix:{tmp_path}/tape")
    backend.put(tmp_path / "disk" / "notes.txt", "notes.txt", pool="a")
    places = Places(archive=Holding(files=tuple(files), copies=((backend, "a"),)))
    with pytest.raises(SourceError, match="expected a Zarr store, HDF5 or image files"):
        restore_events(["@0"], places=places, out=tmp_path / "out.zarr", pool=serial)
