"""Blosc chunks of HDF5 become tiles of a run store as they are, and nothing is decoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted import BrightestPixel

from sfxreduce.cluster import Pool, SerialPool
from sfxreduce.io.chunks import decode as partial
from sfxreduce.io.chunks import shards
from sfxreduce.io.chunks.blosc import PACKINGS, USUAL_PACKING, Packing
from sfxreduce.io.chunks.pieces import tile_pieces
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr.run import ZarrFrames
from sfxreduce.pipeline.filter import Outputs, filter_run
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.settings import FilterSettings
from sfxreduce.pipeline.verify.output import verify_run
from sfxreduce.run.reasons import Reason
from sfxreduce.run.window import Window

DATA = "/entry_1/data_1/data"
ZSTD = hdf5plugin.Blosc(cname="zstd", clevel=3, shuffle=hdf5plugin.Blosc.BITSHUFFLE)
LZ4 = hdf5plugin.Blosc(cname="lz4", clevel=5, shuffle=hdf5plugin.Blosc.SHUFFLE)


def frames_of(n: int = 9, shape: tuple[int, ...] = (60, 50), dtype: str = "<i2") -> np.ndarray:
    """Noise; every third event has a bright pixel in the middle."""
    frames = np.random.default_rng(1).normal(100, 5, (n, *shape)).astype(dtype)
    middle = tuple(side // 2 for side in shape)
    frames[(slice(0, None, 3), *middle)] = 250
    return frames


def write(path: Path, frames: np.ndarray, chunks: tuple[int, ...] = (), **options: Any) -> Path:
    """Write an HDF5 file, whole panels in a chunk."""
    chunks = chunks or (1,) * (frames.ndim - 2) + frames.shape[-2:]
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, data=frames, chunks=chunks, **options)
        file["/entry_1/data_1/mask"] = np.zeros(frames.shape[1:], np.uint8)
    return path


@pytest.fixture
def no_codec(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was decoded or encoded on the way."""
    called: list[str] = []
    seams: tuple[tuple[Any, str], ...] = (
        (shards.TileCodec, "encode"),
        (shards.TileCodec, "decode"),
        (partial, "_decompress"),
        (h5py.Dataset, "read_direct"),
        (h5py.Dataset, "__getitem__"),
    )
    for owner, name in seams:
        real = getattr(owner, name)

        def noting(*args: Any, name: str = name, real: Any = real, **options: Any) -> Any:
            called.append(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, noting)
    return called


@pytest.mark.parametrize("shape", [(60, 50), (3, 30, 40)])
@pytest.mark.parametrize("packing", [ZSTD, LZ4], ids=["zstd", "lz4"])
def test_chunks_become_tiles_without_being_decoded(
    tmp_path: Path, shape: tuple[int, ...], packing: Any, serial: Pool, no_codec: list[str]
) -> None:
    frames = frames_of(shape=shape)
    run = open_run(write(tmp_path / "run.h5", frames, **packing))
    run.source.layout  # type: ignore[attr-defined]  # noqa: B018 - whatever is read once
    no_codec.clear()
    summary = ingest_run(run, out=tmp_path / "run.zarr", pool=serial)
    assert no_codec == []
    assert (summary.rewrapped, summary.unreadable, summary.events) == (True, 0, 9)
    stored = open_run(tmp_path / "run.zarr")
    assert isinstance(stored.source, ZarrFrames)
    assert stored.source.layout == run.source.layout  # type: ignore[attr-defined]
    assert stored.source.read(range(9)).pixels.tobytes() == frames.tobytes()
    with h5py.File(tmp_path / "run.h5") as file:
        offset = (4, *(0 for _ in shape))
        _, chunk = file[DATA].id.read_direct_chunk(offset)
    assert next(stored.source.encoded([4]))[0] == shards.with_crc(chunk)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cname=st.sampled_from(["blosclz", "lz4", "lz4hc", "zlib", "zstd"]),
    clevel=st.integers(1, 9),
    shuffle=st.integers(0, 2),
    dtype=st.sampled_from(["<i2", "u1", "<u4", "<f4", "<f8"]),
    panels=st.booleans(),
    noise=st.booleans(),
)
def test_every_zarr_reader_reads_the_same_bits(
    tmp_path_factory: pytest.TempPathFactory,
    cname: str,
    clevel: int,
    shuffle: int,
    dtype: str,
    panels: bool,
    noise: bool,
) -> None:
    folder = tmp_path_factory.mktemp("rewrap")
    frames = frames_of(5, (3, 30, 40) if panels else (60, 50), dtype)
    if noise:
        random = np.random.default_rng(0).integers(0, 256, frames[1:4].nbytes)
        frames[1:4] = random.astype("u1").view(dtype).reshape(frames[1:4].shape)
    # The filter stores as it is what it cannot make smaller; one chunk has to say how it packs.
    frames[0] = 7
    packing = hdf5plugin.Blosc(cname=cname, clevel=clevel, shuffle=shuffle)
    path = write(folder / "run.h5", frames, **packing)
    summary = ingest_run(open_run(path), out=folder / "run.zarr", pool=SerialPool())
    assert summary.rewrapped
    array = zarr.open_group(str(folder / "run.zarr"), mode="r")["frames"]
    assert isinstance(array, zarr.Array)
    assert np.asarray(array[...]).tobytes() == frames.tobytes()
    with xr.open_zarr(folder / "run.zarr", consolidated=False) as data:
        assert data.frames.values.tobytes() == frames.tobytes()
    facts = json.loads((folder / "run.zarr" / "frames" / "zarr.json").read_text())
    found = facts["codecs"][0]["configuration"]["codecs"][1]["configuration"]
    # The header has one number for lz4 and lz4hc, which unpack alike.
    assert found["cname"] == cname.removesuffix("hc")
    assert (found["clevel"], found["typesize"]) == (clevel, frames.dtype.itemsize)
    layout = ZarrFrames(path=str(folder / "run.zarr")).layout
    assert layout is not None
    assert found["blocksize"] == layout.packing.blocksize
    run = open_run(folder / "run.zarr")
    window = Window.centre(run.detector, tile_shape=(7, 9))
    expected = [window.take(frame, run.detector) for frame in frames]
    reading = run.source.read(range(5), window)
    assert reading.pixels.tobytes() == np.array(expected).tobytes()
    assert not reading.reasons.any()


def test_hits_of_such_a_store_are_copied_and_verified(
    tmp_path: Path, serial: Pool, no_codec: list[str]
) -> None:
    frames = frames_of()
    path = write(tmp_path / "run.h5", frames, **LZ4)
    ingest_run(open_run(path), out=tmp_path / "run.zarr", pool=serial)
    source = open_run(tmp_path / "run.zarr")
    scorer = BrightestPixel(tile=10, threshold=200.0)
    no_codec.clear()
    report = filter_run(
        source,
        settings=FilterSettings(scorer=scorer),
        outputs=Outputs(store=tmp_path / "hits.zarr"),
        pool=serial,
    )
    assert "encode" not in no_codec
    # What is copied is compared with what was scored.
    assert no_codec.count("decode") == 9 + report.kept + report.audit_sample
    hits = open_run(tmp_path / "hits.zarr")
    assert hits.columns["source_index"].values.tolist() == [0, 3, 6]
    ours, theirs = (ZarrFrames(path=str(tmp_path / f"{n}.zarr")) for n in ("hits", "run"))
    assert ours.layout == theirs.layout
    assert ours.layout is not None
    assert ours.layout.packing.cname == "lz4"
    assert list(ours.encoded([0, 1, 2])) == list(theirs.encoded([0, 3, 6]))
    for against in (source, open_run(path)):
        assert verify_run(tmp_path / "hits.zarr", against=against, pool=serial).ok
    with xr.open_zarr(tmp_path / "hits.zarr", consolidated=False) as data:
        assert data.frames.values.tobytes() == frames[[0, 3, 6]].tobytes()


def test_a_window_of_a_whole_frame_tile_unpacks_only_its_blocks(
    tmp_path: Path, serial: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = frames_of(2, (700, 700))
    packing = hdf5plugin.Blosc(cname="zstd", clevel=1, shuffle=2)
    path = write(tmp_path / "run.h5", frames, **packing)
    ingest_run(open_run(path), out=tmp_path / "run.zarr", pool=serial)
    source = ZarrFrames(path=str(tmp_path / "run.zarr"))
    assert source.layout is not None
    blocksize = source.layout.packing.blocksize
    unpacked, decompress = [], partial._decompress

    def noting(packed: memoryview, out: np.ndarray) -> None:
        unpacked.append(out.nbytes)
        decompress(packed, out)

    monkeypatch.setattr(partial, "_decompress", noting)
    window = Window.centre(source.detector, tile_shape=(100, 100))
    pixels = source.read([1, 0], window).pixels
    np.testing.assert_array_equal(pixels[:, 0], frames[[1, 0], 300:400, 300:400])
    first, last = 2 * (300 * 700 + 300), 2 * (399 * 700 + 400) - 1
    blocks = last // blocksize - first // blocksize + 1
    assert unpacked == [blocks * blocksize] * 2
    assert sum(unpacked) < frames.nbytes / 2


def test_tiles_of_one_packing_are_not_copied_into_a_store_of_another(
    tmp_path: Path, serial: Pool
) -> None:
    from sfxreduce.errors import SchemaError
    from sfxreduce.io.writers.shards import ShardJob, copy_shard

    run = open_run(write(tmp_path / "run.h5", frames_of(), **LZ4))
    layout = run.source.layout  # type: ignore[attr-defined]
    other = type(layout)(
        frame_shape=layout.frame_shape,
        tile=layout.tile,
        events_per_shard=layout.events_per_shard,
        packing=USUAL_PACKING,
    )
    job = ShardJob(source=run.source, store=str(tmp_path), layout=other, shard=0, events=(0,))
    with pytest.raises(SchemaError, match="encode them instead"):
        copy_shard(job)


@pytest.mark.parametrize("packing", PACKINGS)
def test_retile_decodes_and_cuts_tiles_for_the_window(
    packing: str, tmp_path: Path, serial: Pool
) -> None:
    frames = frames_of(4, (400, 380))
    run = open_run(write(tmp_path / "run.h5", frames, **ZSTD))
    summary = ingest_run(run, out=tmp_path / "run.zarr", pool=serial, retile=True, packing=packing)
    assert not summary.rewrapped
    source = ZarrFrames(path=str(tmp_path / "run.zarr"))
    assert source.layout is not None
    assert source.layout.packing == PACKINGS[packing]
    shapes = source.layout.frame_shape, source.layout.chunks[1:]
    assert len(tile_pieces(*shapes, run.detector, Window.centre(run.detector))) == 1
    assert source.read(range(4)).pixels.tobytes() == frames.tobytes()


OTHERS: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "gzip": ({"compression": "gzip"}, (), "<i2"),
    "plain": ({}, (), "<i2"),
    "checksum": ({**ZSTD, "fletcher32": True}, (), "<i2"),
    "shuffled before": ({**ZSTD, "shuffle": True}, (), "<i2"),
    "blosc2": (dict(hdf5plugin.Blosc2()), (), "<i2"),
    "big endian": (dict(ZSTD), (), ">i2"),
    "part of a panel": (dict(ZSTD), (1, 1, 15, 40), "<i2"),
    "several panels": (dict(ZSTD), (1, 3, 30, 40), "<i2"),
    "stored as it is": (dict(hdf5plugin.Blosc(clevel=0)), (), "<i2"),
    "several events": (dict(ZSTD), (2, 1, 30, 40), "<i2"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_tile_yet_is_decoded(tmp_path: Path, serial: Pool, kind: str) -> None:
    options, chunks, dtype = OTHERS[kind]
    frames = frames_of(shape=(3, 30, 40), dtype=dtype)
    run = open_run(write(tmp_path / "run.h5", frames, chunks, **options))
    assert run.source.layout is None  # type: ignore[attr-defined]
    summary = ingest_run(run, out=tmp_path / "run.zarr", pool=serial)
    assert (summary.rewrapped, summary.unreadable) == (False, 0)
    found = open_run(tmp_path / "run.zarr").source.read(range(9)).pixels
    np.testing.assert_array_equal(found, frames)


def test_several_files_and_virtual_datasets_are_decoded(tmp_path: Path, serial: Pool) -> None:
    frames = frames_of()
    files = [write(tmp_path / f"{i}.h5", frames, **ZSTD) for i in range(2)]
    layout = h5py.VirtualLayout(frames.shape, frames.dtype)
    layout[:] = h5py.VirtualSource("0.h5", DATA, frames.shape)
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        file.create_virtual_dataset(DATA, layout)
    for source in (files, tmp_path / "virtual.h5"):
        summary = ingest_run(
            open_run(source), out=tmp_path / "run.zarr", pool=serial, overwrite=True
        )
        assert (summary.rewrapped, summary.unreadable) == (False, 0)


def test_slabs_with_a_panel_in_a_chunk_are_taken_over(tmp_path: Path, serial: Pool) -> None:
    frames = frames_of(5, (90, 40))
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file.create_dataset(DATA, data=frames, chunks=(1, 30, 40), **ZSTD)
        detector = file.create_group("/entry_1/instrument_1/detector_1")
        detector["module_identifier"] = ["a", "b", "c"]
        detector["x_pixel_size"] = 1e-4
        detector["corner_position"] = [[0, i * 3e-3, 0] for i in range(3)]
    summary = ingest_run(open_run(tmp_path / "run.h5"), out=tmp_path / "run.zarr", pool=serial)
    assert summary.rewrapped
    found = open_run(tmp_path / "run.zarr").source.read(range(5)).pixels
    np.testing.assert_array_equal(found, frames.reshape(5, 3, 30, 40))


def test_a_chunk_that_the_filter_left_as_it_was_is_packed(tmp_path: Path, serial: Pool) -> None:
    frames = frames_of()
    path = write(tmp_path / "run.h5", frames, **ZSTD)
    with h5py.File(path, "a") as file:
        file[DATA].id.write_direct_chunk((4, 0, 0), frames[4].tobytes(), filter_mask=1)
    run = open_run(path)
    assert ingest_run(run, out=tmp_path / "run.zarr", pool=serial).unreadable == 0
    window = Window.centre(run.detector, tile_shape=(8, 8))
    for source in (run.source, open_run(tmp_path / "run.zarr").source):
        np.testing.assert_array_equal(source.read(range(9)).pixels, frames)
        np.testing.assert_array_equal(
            source.read(range(9), window).pixels[:, 0], frames[:, 26:34, 21:29]
        )


def test_a_missing_chunk_and_one_whose_header_does_not_fit_are_holes(
    tmp_path: Path, serial: Pool
) -> None:
    frames = frames_of(6, (2, 30, 40))
    with h5py.File(tmp_path / "run.h5", "w") as file:
        data = file.create_dataset(DATA, frames.shape, "<i2", chunks=(1, 1, 30, 40), **ZSTD)
        for event in (0, 1, 3, 4, 5):
            data[event] = frames[event]
        data[2, 0] = frames[2, 0]
        _, chunk = data.id.read_direct_chunk((4, 1, 0, 0))
        places = {
            3: chunk[:4] + (10**6).to_bytes(4, "little") + chunk[8:],
            4: chunk[: len(chunk) // 2],
            5: b"",
        }
        for event, bad in places.items():
            if bad:
                data.id.write_direct_chunk((event, 1, 0, 0), bad)
    summary = ingest_run(open_run(tmp_path / "run.h5"), out=tmp_path / "run.zarr", pool=serial)
    assert (summary.rewrapped, summary.unreadable) == (True, 3)
    reading = open_run(tmp_path / "run.zarr").source.read(range(6))
    hole = int(Reason.DATA_HOLE)
    assert reading.reasons.tolist() == [0, 0, hole, hole, hole, 0]
    np.testing.assert_array_equal(reading.pixels[[0, 1, 5]], frames[[0, 1, 5]])


def test_a_chunk_damaged_behind_its_header_is_found_out_when_it_is_decoded(
    tmp_path: Path, serial: Pool
) -> None:
    """What Blosc notices of it; the stored checksum is that of the damaged chunk."""
    frames = frames_of()
    path = write(tmp_path / "run.h5", frames, **ZSTD)
    with h5py.File(path, "a") as file:
        _, chunk = file[DATA].id.read_direct_chunk((4, 0, 0))
        bad = chunk[:16] + b"\xff" * (len(chunk) - 16)
        file[DATA].id.write_direct_chunk((4, 0, 0), bad)
    assert ingest_run(open_run(path), out=tmp_path / "run.zarr", pool=serial).unreadable == 0
    expected = [0] * 9
    expected[4] = int(Reason.READ_ERROR)
    assert open_run(tmp_path / "run.zarr").source.read(range(9)).reasons.tolist() == expected
    assert open_run(path).source.read(range(9)).reasons.tolist() == expected


def test_a_file_that_is_gone_by_then_leaves_holes(tmp_path: Path, serial: Pool) -> None:
    path = write(tmp_path / "run.h5", frames_of(), **ZSTD)
    source = open_run(path).source
    assert source.layout is not None  # type: ignore[attr-defined]
    write(path, frames_of(shape=(60, 40)), **ZSTD)
    tiles = list(source.encoded([0, 1]))  # type: ignore[attr-defined]
    assert tiles == [[None], [None]]


def test_on_a_cluster_the_same_bytes_are_written(
    tmp_path: Path, serial: Pool, cluster: Pool
) -> None:
    run = open_run(write(tmp_path / "run.h5", frames_of(), **ZSTD))
    for name, pool in (("a", serial), ("b", cluster)):
        ingest_run(run, out=tmp_path / name, pool=pool)
    ours, theirs = (
        {str(p.relative_to(tmp_path / n)): p.read_bytes() for p in (tmp_path / n).rglob("*.*")}
        for n in "ab"
    )
    assert ours == theirs


def test_stores_packed_in_any_way_are_our_own(tmp_path: Path, serial: Pool) -> None:
    run = open_run(write(tmp_path / "run.h5", frames_of(), **LZ4))
    ingest_run(run, out=tmp_path / "run.zarr", pool=serial)
    for cname, clevel in (("zlib", 9), ("lz4hc", 2)):
        _change(tmp_path / "run.zarr", cname=cname, clevel=clevel)
        layout = ZarrFrames(path=str(tmp_path / "run.zarr")).layout
        assert layout is not None
        assert layout.packing == Packing(
            cname=cname, clevel=clevel, shuffle="shuffle", blocksize=layout.packing.blocksize
        )
    # Of another chain, tiles cannot be moved: it may do more than Blosc does.
    _change(tmp_path / "run.zarr", typesize=1)
    assert ZarrFrames(path=str(tmp_path / "run.zarr")).layout is None


def _change(path: Path, **settings_of_blosc: object) -> None:
    """Edit the metadata of the frames, and make the store look new."""
    file = path / "frames" / "zarr.json"
    facts = json.loads(file.read_text())
    facts["codecs"][0]["configuration"]["codecs"][1]["configuration"].update(settings_of_blosc)
    file.write_text(json.dumps(facts))
    root = path / "zarr.json"
    data = root.read_bytes()
    root.unlink()
    root.write_bytes(data)
