"""A run store gives back what went in, says what it is, and never passes a hole for zeros."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from planted import ArrayFrames, BrightestPixel, planted_run

from sfxreduce.cluster import Pool
from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.io.store.guard import GuardedStore
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.score import score
from sfxreduce.run.columns import MISSING_TIME
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window


def shard_files(store: Path) -> list[Path]:
    return sorted(p for p in (store / "frames" / "c").rglob("*") if p.is_file())


def test_frames_columns_mask_geometry_and_truth_come_back(
    run: Run, stored: Path, frames: np.ndarray
) -> None:
    back = open_run(stored)
    assert back.source.dtype == frames.dtype
    assert back.source.read(range(70)).pixels.tobytes() == frames.tobytes()
    np.testing.assert_array_equal(back.detector.mask, run.detector.mask)
    assert back.detector.panels == run.detector.panels
    assert np.isnan(back.detector.adu_per_photon)
    assert (back.experiment, back.name) == ("planted", "r1")
    xr.testing.assert_equal(back.columns[list(run.columns)], run.columns)
    assert back.truth is not None
    xr.testing.assert_identical(back.truth, run.truth)


def test_lazy_frames_equal_the_source(stored: Path, frames: np.ndarray) -> None:
    lazy = open_run(stored).frames
    assert lazy.dims == ("event", *(("panel",) if frames.ndim == 4 else ()), "y", "x")
    np.testing.assert_array_equal(lazy.compute(scheduler="synchronous"), frames)


def test_a_store_opens_in_xarray_without_a_warning_and_with_names_and_units(
    stored: Path, frames: np.ndarray
) -> None:
    with xr.open_zarr(stored, consolidated=False) as data:
        assert data.frames.dims[0] == "event"
        assert data.frames.attrs["units"] == "ADU"
        assert data.photon_energy_ev.attrs["units"] == "eV"
        assert data.timestamp_ns.dtype == "datetime64[ns]"
        assert np.isnat(data.timestamp_ns.values).all()
        assert data.event_id.values[3] == "event-3"
        np.testing.assert_array_equal(data.frames, frames)


def test_every_array_of_a_store_is_checksummed(stored: Path) -> None:
    metadata = [json.loads(p.read_text()) for p in stored.rglob("zarr.json")]
    arrays = [m for m in metadata if m["node_type"] == "array"]
    assert len(arrays) >= 10
    for array in arrays:
        last = array["codecs"][-1]
        if last["name"] == "sharding_indexed":
            assert last["configuration"]["codecs"][-1]["name"] == "crc32c"
            assert last["configuration"]["index_codecs"][-1]["name"] == "crc32c"
        else:
            assert last["name"] == "crc32c"


def test_a_window_is_read_alone_and_exactly(run: Run, stored: Path) -> None:
    for tile_shape in ((20, 30), (100, 100), (400, 20)):
        window = Window.centre(run.detector, tile_shape=tile_shape)
        ours = open_run(stored).source.read([0, 33, 69], window)
        theirs = run.source.read([0, 33, 69], window)
        np.testing.assert_array_equal(ours.pixels, theirs.pixels)
        assert not ours.reasons.any()


def test_reading_a_centre_tile_touches_only_its_bytes(
    tmp_path: Path, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planted_run(n_events=4, dtype="uint16")
    frames = np.random.default_rng(0).poisson(3, (4, 1750, 1750)).astype("uint16")
    detector = type(run.detector).centred("camera", (1750, 1750))
    big = Run(source=ArrayFrames(frames=frames, detector=detector), columns=run.columns)
    ingest_run(big, out=tmp_path / "big.zarr", pool=serial)
    source = ZarrFrames(path=str(tmp_path / "big.zarr"))
    layout = source.layout
    assert layout is not None
    n_read, preadv = 0, os.preadv

    def counting(file: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal n_read
        n_bytes = preadv(file, buffers, offset)
        n_read += n_bytes
        return n_bytes

    monkeypatch.setattr("sfxreduce.io.chunks.blosc.os.preadv", counting)
    reading = source.read(range(4), Window.centre(detector))
    np.testing.assert_array_equal(reading.pixels[:, 0], frames[:, 700:1050, 700:1050])
    index_bytes = 16 * layout.events_per_shard * layout.tiles_per_event + 4
    window = Window.centre(detector)
    (piece,) = tile_pieces(layout.frame_shape, layout.chunks[1:], detector, window)
    monkeypatch.undo()
    window_bytes = sum(len(tiles[piece.tile] or b"") for tiles in source.encoded(range(4)))
    assert n_read == window_bytes + index_bytes


def test_a_missing_shard_is_a_hole_and_never_zeros(stored: Path) -> None:
    shard_files(stored)[0].unlink()
    reading = open_run(stored).source.read([0, 1])
    assert reading.reasons.tolist() == [Reason.DATA_HOLE] * 2
    with pytest.raises(SourceError, match="event 0 cannot be read"):
        open_run(stored).frames[0].compute(scheduler="synchronous")


@pytest.mark.parametrize("damage", ["empty", "half", "index"])
def test_a_damaged_shard_is_a_read_error(stored: Path, damage: str) -> None:
    file = shard_files(stored)[0]
    data = file.read_bytes()
    if damage == "index":
        data = data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    file.write_bytes({"empty": b"", "half": data[: len(data) // 2]}.get(damage, data))
    assert open_run(stored).source.read([0]).reasons.tolist() == [Reason.READ_ERROR]


def test_one_flipped_byte_costs_one_event(stored: Path, frames: np.ndarray) -> None:
    file = shard_files(stored)[0]
    data = bytearray(file.read_bytes())
    data[20] ^= 4
    file.write_bytes(data)
    reading = open_run(stored).source.read(range(70))
    assert np.flatnonzero(reading.reasons).tolist() == [0]
    np.testing.assert_array_equal(reading.pixels[1:], frames[1:])


def test_an_unreadable_source_event_is_stored_as_a_hole(tmp_path: Path, serial: Pool) -> None:
    run = planted_run(n_events=5)
    source = ArrayFrames(
        frames=run.source.frames,  # type: ignore[attr-defined]
        detector=run.detector,
        reasons={3: int(Reason.READ_ERROR)},
    )
    holed = Run(source=source, columns=run.columns)
    summary = ingest_run(holed, out=tmp_path / "run.zarr", pool=serial)
    assert summary.unreadable == 1
    reading = open_run(tmp_path / "run.zarr").source.read(range(5))
    assert reading.reasons.tolist() == [0, 0, 0, Reason.DATA_HOLE, 0]
    with xr.open_zarr(tmp_path / "run.zarr", consolidated=False) as data:
        assert (data.frames[3] == np.iinfo("int16").min).all()


def test_other_peoples_zarr_is_read_where_it_lies(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(1, 99, (6, 20, 30)).astype("uint16")
    group = zarr.create_group(str(tmp_path / "theirs.zarr"))
    array = group.create_array("frames", shape=frames.shape, dtype="uint16", chunks=(2, 20, 15))
    array[...] = frames
    run = open_run(tmp_path / "theirs.zarr")
    np.testing.assert_array_equal(run.source.read(range(6)).pixels, frames)
    window = Window.centre(run.detector, tile_shape=(4, 4))
    np.testing.assert_array_equal(run.source.read([5], window).pixels[0, 0], frames[5, 8:12, 13:17])
    assert (run.columns.timestamp_ns.values == MISSING_TIME).all()


def test_ingest_reads_neighbours_together_but_few_frames_at_a_time(
    tmp_path: Path, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frame by frame, every event of a chunk of several opened and decoded it anew."""
    run = planted_run(n_events=11)
    asked: list[list[int]] = []
    read = ArrayFrames.read

    def noting(self: ArrayFrames, events: list[int], window: Window | None = None) -> object:
        asked.append(list(events))
        return read(self, events, window)

    monkeypatch.setattr(ArrayFrames, "read", noting)
    monkeypatch.setattr("sfxreduce.io.writers.shards.READ_BYTES", 4 * 130 * 150 * 2 + 1)
    ingest_run(run, out=tmp_path / "run.zarr", pool=serial)
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


def test_tiles_of_single_bytes_are_our_own_too(tmp_path: Path, serial: Pool) -> None:
    """Zarr names no byte order for them, and so their chain was taken for somebody else's."""
    planted = planted_run(n_events=3)
    frames = planted.source.read(range(3)).pixels.astype("uint8")
    source = ArrayFrames(frames=frames, detector=planted.detector)
    ingest_run(Run(source=source, columns=planted.columns), out=tmp_path / "run.zarr", pool=serial)
    stored = ZarrFrames(path=str(tmp_path / "run.zarr"))
    assert stored.layout is not None
    np.testing.assert_array_equal(stored.read(range(3)).pixels, frames)


def test_a_replaced_store_is_not_served_from_memory(tmp_path: Path, serial: Pool) -> None:
    path = tmp_path / "run.zarr"
    ingest_run(planted_run(n_events=3), out=path, pool=serial)
    assert open_run(path).n_events == 3
    ingest_run(planted_run(n_events=5, seed=2), out=path, pool=serial, overwrite=True)
    assert open_run(path).n_events == 5


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="no such file or folder"):
        open_run(tmp_path / "nowhere.zarr")
    zarr.create_group(str(tmp_path / "empty.zarr")).create_group("other")
    with pytest.raises(SchemaError, match=r"no array 'frames'; found \['other'\]"):
        open_run(tmp_path / "empty.zarr")
    (tmp_path / "folder").mkdir()
    with pytest.raises(SchemaError, match="expected a Zarr group"):
        open_run(tmp_path / "folder")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SchemaError, match=r"found one ending in '\.txt'"):
        open_run(tmp_path / "notes.txt")
    newer = zarr.create_group(str(tmp_path / "newer.zarr"), attributes={"schema_version": 99})
    newer.create_array("frames", shape=(1, 2, 2), dtype="i2")
    with pytest.raises(SchemaError, match="version 99"):
        open_run(tmp_path / "newer.zarr")


def test_the_same_run_gives_the_same_bytes_on_any_pool(
    tmp_path: Path, run: Run, serial: Pool, cluster: Pool
) -> None:
    for name, pool in (("a", serial), ("b", cluster)):
        ingest_run(run, out=tmp_path / name, pool=pool)
    ours, theirs = (
        {str(p.relative_to(tmp_path / n)): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in "ab"
    )
    assert ours == theirs


def test_files_named_in_the_columns_are_inputs_even_if_they_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may not be entered raised PermissionError out of `Run.inputs`."""
    run = planted_run(n_events=5)
    (tmp_path / "there.cbf").write_bytes(b"")
    closed = tmp_path / "closed" / "frame.cbf"
    names = [str(tmp_path / "there.cbf"), str(tmp_path / "gone.cbf"), str(closed), "a\0b", ""]
    run.columns["source_file"] = ("event", np.array(names, object))
    stat = Path.stat

    def refusing(path: Path, **options: bool) -> object:
        if path == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refusing)
    assert run.inputs == [closed, tmp_path / "there.cbf"]


def test_a_source_that_is_lost_after_opening_flags_its_events(stored: Path) -> None:
    """Scoring asked for the detector before it read, and failed with the source."""
    run = open_run(stored)
    scores = score(run, BrightestPixel(tile=10), batch=40)
    shutil.rmtree(stored)
    rows = scores.compute(scheduler="synchronous")
    assert rows.shape == (70,)
    assert np.isnan(rows["score"]).all()
    assert (rows["reason"] == Reason.FILE_UNREADABLE).all()


def theirs(path: Path, frames: np.ndarray, **options: object) -> Path:
    """Write somebody's Zarr, two events and half a frame in a chunk."""
    array = zarr.create_group(str(path)).create_array(
        "frames", shape=frames.shape, dtype=frames.dtype, chunks=(2, 20, 15), **options
    )
    array[...] = frames
    return path


def test_a_chunk_that_zarr_left_out_is_fill_values_and_an_event_without_any_is_a_hole(
    tmp_path: Path,
) -> None:
    """Zarr does not store chunks of fill values: events with an empty corner were all flagged."""
    frames = np.random.default_rng(0).integers(1, 99, (6, 20, 30)).astype("uint16")
    frames[2:4, :, 15:] = 0
    frames[4:] = 0
    path = theirs(tmp_path / "theirs.zarr", frames)
    assert not (path / "frames" / "c" / "1" / "0" / "1").exists()
    reading = open_run(path).source.read([3, 0, 4, 2])
    assert reading.reasons.tolist() == [0, 0, Reason.DATA_HOLE, 0]
    np.testing.assert_array_equal(reading.pixels[[0, 1, 3]], frames[[3, 0, 2]])


def test_an_absent_chunk_of_our_schema_is_a_hole(tmp_path: Path) -> None:
    frames = np.ones((4, 20, 30), np.uint16)
    path = theirs(tmp_path / "ours.zarr", frames)
    zarr.open_group(str(path)).attrs["schema"] = "sfxreduce.run"
    (path / "frames" / "c" / "1" / "0" / "1").unlink()
    hole = int(Reason.DATA_HOLE)
    assert ZarrFrames(path=str(path)).read(range(4)).reasons.tolist() == [0, 0, hole, hole]


def test_our_tiles_without_our_schema_are_somebody_elses(stored: Path) -> None:
    """An absent tile of such a store is one of fill values, so tiles cannot be copied as holes."""
    group = zarr.open_group(str(stored))
    del group.attrs["schema"]
    assert open_run(stored).source.layout is None  # type: ignore[attr-defined]


def test_a_chunk_of_several_events_is_decoded_once_for_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every event decoded its chunk anew, as often as there are events in it."""
    frames = np.random.default_rng(0).integers(1, 99, (6, 20, 30)).astype("uint16")
    run = open_run(theirs(tmp_path / "theirs.zarr", frames))
    fetched: list[str] = []
    get = GuardedStore.get

    async def counting(store: object, key: str, *args: object, **options: object) -> object:
        fetched.append(key)
        return await get(store, key, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GuardedStore, "get", counting)
    np.testing.assert_array_equal(run.source.read(range(6)).pixels, frames)
    assert sorted(fetched) == [f"frames/c/{i}/0/{j}" for i in range(3) for j in range(2)]
    assert run.events_per_block == 2


@pytest.mark.parametrize("dtype", [np.longdouble, np.complex64, np.bool_])
def test_pixels_of_a_kind_that_no_detector_delivers_are_refused(
    tmp_path: Path, dtype: type[np.generic]
) -> None:
    """Floats of 80 bits got as far as the writer, which cannot store them."""
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["/entry/data/data"] = np.ones((2, 4, 4), dtype)
    with pytest.raises(SchemaError, match=r"expected .*found"):
        open_run(tmp_path / "run.h5")


def test_a_store_of_frames_too_large_to_hold_is_refused(tmp_path: Path) -> None:
    """A mask of its shape was made first, and the process was killed for its memory."""
    group = zarr.create_group(str(tmp_path / "large.zarr"))
    group.create_array("frames", shape=(1, 2**20, 2**20), dtype="u2", chunks=(1, 512, 512))
    with pytest.raises(SchemaError, match="67108864 pixels"):
        open_run(tmp_path / "large.zarr")


@pytest.mark.parametrize("name", ["run.zarr", "run.cxi", "run.cbf"])
def test_a_path_that_may_not_be_looked_at_is_one_clear_error(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Path.exists` raises PermissionError, which ended in a traceback."""

    def refusing(path: Path, **_: bool) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", refusing)
    with pytest.raises(SourceError, match=r"cannot be reached \(Permission denied\)"):
        open_run(tmp_path / name)


def test_a_store_that_may_not_be_entered_is_one_clear_error(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was said to be absent."""
    stat = Path.stat

    def refusing(path: Path, **options: bool) -> object:
        if path.parent == stored:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refusing)
    with pytest.raises(SourceError, match=r"cannot be entered \(Permission denied\)"):
        open_run(stored)


@pytest.mark.parametrize("name", ["x" * 5000 + ".cxi", "a\0b.cxi"])
def test_a_name_that_no_file_can_have_is_one_clear_error(tmp_path: Path, name: str) -> None:
    """The system's own error, "File name too long", ended in a traceback."""
    with pytest.raises((SourceError, RunNotFound), match=r"too long|no such file"):
        open_run(tmp_path / name)
