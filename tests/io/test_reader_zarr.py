"""Zarr arrays of other makers: the same pixels however they are packed, and no more bytes read."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

from sfxreduce.io.chunks import decode as partial
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.zarr import foreign as zarr_foreign
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

SHAPE = (7, 24, 30)
PANELS = (7, 3, 10, 12)
V3: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "blosc zstd": {"compressors": BloscCodec(cname="zstd", shuffle="bitshuffle", blocksize=256)},
    "blosc lz4": {"compressors": BloscCodec(cname="lz4", shuffle="shuffle")},
    "blosc, stored": {"compressors": BloscCodec(clevel=0)},
    "blosc and crc": {"compressors": [BloscCodec(), Crc32cCodec()]},
    "gzip": {"compressors": GzipCodec()},
    "turned": {"compressors": BloscCodec()},
}
V2: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "blosc": {"compressors": numcodecs.Blosc(cname="zstd", clevel=1, shuffle=2, blocksize=256)},
    "blosc, columns first": {"compressors": numcodecs.Blosc(), "order": "F"},
    "blosc after a filter": {"compressors": numcodecs.Blosc(), "filters": "delta"},
    "zlib": {"compressors": numcodecs.Zlib()},
}


def pixels_of(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Frames with something in every pixel that differs from its neighbours."""
    rng = np.random.default_rng(3)
    values = rng.integers(1, 200, shape)
    values[:, shape[1] // 2 :] = rng.poisson(0.1, values[:, shape[1] // 2 :].shape)
    return values.astype(dtype)


def make(
    path: Path, frames: np.ndarray, chunks: tuple[int, ...], version: int, packing: str, **more: Any
) -> Run:
    """Write somebody's store, and open it."""
    options = dict((V3 if version == 3 else V2)[packing]) | more
    if options.get("filters") == "delta":
        options["filters"] = [numcodecs.Delta(frames.dtype.str)]
    if packing == "turned":
        axes = (0, *range(frames.ndim - 1, 0, -1))
        options["filters"] = [TransposeCodec(order=axes)]
    # Zarr warns of dtypes and codecs that are not in its specification.
    with warnings.catch_warnings(action="ignore"):
        group = zarr.create_group(str(path), zarr_format=version)  # type: ignore[arg-type]
        array = group.create_array(
            "frames", shape=frames.shape, dtype=frames.dtype, chunks=chunks, **options
        )
        array[...] = frames
        return open_run(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kind=st.sampled_from([(3, name) for name in V3] + [(2, name) for name in V2]),
    dtype=st.sampled_from(["<i2", ">i2", "u1", "<f4", ">u4"]),
    panels=st.booleans(),
    draw=st.data(),
)
def test_a_window_shows_what_the_whole_frame_shows_however_it_is_packed(
    tmp_path_factory: pytest.TempPathFactory,
    kind: tuple[int, str],
    dtype: str,
    panels: bool,
    draw: st.DataObject,
) -> None:
    frames = pixels_of(PANELS if panels else SHAPE, dtype)
    # A chunk of one pixel tells nothing new and is slow.
    sides = [st.sampled_from([max(1, n // 3), n // 2, n, n + 3]) for n in frames.shape[1:]]
    sides = [st.sampled_from([1, 2, 7]), *sides]
    chunks = draw.draw(st.tuples(*sides))
    run = make(tmp_path_factory.mktemp("store") / "theirs.zarr", frames, chunks, *kind)
    origin = st.tuples(st.integers(-5, 28), st.integers(-5, 28))
    window = Window(
        name="tiles",
        tile_shape=draw.draw(st.tuples(st.integers(1, 12), st.integers(1, 12))),
        origins=tuple(draw.draw(st.lists(origin, min_size=1, max_size=3))),
    )
    events = draw.draw(st.lists(st.integers(0, 6), min_size=1, max_size=8))
    whole, part = run.source.read(events), run.source.read(events, window)
    np.testing.assert_array_equal(whole.reasons, part.reasons)
    assert part.pixels.dtype == whole.pixels.dtype
    read = whole.reasons == 0
    np.testing.assert_array_equal(whole.pixels[read], frames[events][read])
    for pixels, frame in zip(part.pixels[read], frames[events][read], strict=True):
        np.testing.assert_array_equal(pixels, window.take(frame, run.detector))


@pytest.mark.parametrize(
    ("version", "packing", "is_own_way"),
    [
        (3, "plain", True),
        (3, "blosc zstd", True),
        (3, "blosc and crc", False),
        (3, "gzip", False),
        (3, "turned", False),
        (2, "plain", True),
        (2, "blosc", True),
        (2, "blosc, columns first", False),
        (2, "blosc after a filter", False),
    ],
)
def test_only_chunks_that_are_pixels_or_one_blosc_buffer_are_read_without_zarr(
    tmp_path: Path,
    version: int,
    packing: str,
    is_own_way: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frames = pixels_of(SHAPE, "i2")
    run = make(tmp_path / "theirs.zarr", frames, (2, *SHAPE[1:]), version, packing)
    called = []
    monkeypatch.setattr(
        zarr_foreign, "_read_window", lambda store, events, window: called.append(events) or 0
    )
    run.source.read(range(7), Window.centre(run.detector, tile_shape=(4, 4)))
    assert called == ([] if is_own_way else [[0, 1], [2, 3], [4, 5], [6]])


def counting_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Count the bytes that are fetched from files."""
    n_bytes = 0
    preadv = os.preadv

    def counting(file: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal n_bytes
        found = preadv(file, buffers, offset)
        n_bytes += found
        return found

    monkeypatch.setattr("sfxreduce.io.chunks.blosc.os.preadv", counting)
    return lambda: n_bytes


@pytest.fixture
def large() -> np.ndarray:
    return np.random.default_rng(0).poisson(3, (2, 1750, 1750)).astype("int16")


def test_the_centre_of_a_plain_frame_costs_its_rows(
    tmp_path: Path, large: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path / "theirs.zarr", large, (1, 1750, 1750), 3, "plain")
    fetched = counting_reads(monkeypatch)
    window = Window.centre(run.detector)
    pixels = run.source.read([0, 1], window).pixels
    np.testing.assert_array_equal(pixels[:, 0], large[:, 700:1050, 700:1050])
    assert fetched() == 2 * 2 * (349 * 1750 + 350)


@pytest.mark.parametrize("events_per_chunk", [1, 2])
def test_the_centre_of_a_blosc_frame_costs_the_blocks_of_its_rows(
    tmp_path: Path, large: np.ndarray, events_per_chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packing = {"compressors": BloscCodec(cname="zstd", clevel=1, blocksize=2**16)}
    chunks = (events_per_chunk, 1750, 1750)
    run = make(tmp_path / "theirs.zarr", large, chunks, 3, "plain", **packing)
    fetched = counting_reads(monkeypatch)
    unpacked = 0
    decompress = partial._decompress

    def unpacking(buffer: memoryview, out: np.ndarray) -> None:
        nonlocal unpacked
        unpacked += out.nbytes
        decompress(buffer, out)

    monkeypatch.setattr(partial, "_decompress", unpacking)
    pixels = run.source.read([0, 1], Window.centre(run.detector)).pixels
    np.testing.assert_array_equal(pixels[:, 0], large[:, 700:1050, 700:1050])
    blocks = set()
    for event in range(2):
        first = 2 * (event % events_per_chunk * 1750**2 + 700 * 1750 + 700)
        last = first + 2 * (349 * 1750 + 350) - 1
        chunk = event // events_per_chunk
        blocks |= {(chunk, block) for block in range(first >> 16, (last >> 16) + 1)}
    assert unpacked == len(blocks) << 16
    files = chunk_files(tmp_path / "theirs.zarr")
    assert fetched() < 0.25 * sum(file.stat().st_size for file in files)


def test_shards_of_others_are_read_box_by_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = pixels_of((4, 60, 60), "u2")
    options = {"compressors": ZstdCodec(), "shards": (4, 60, 60)}
    run = make(tmp_path / "theirs.zarr", frames, (1, 10, 10), 3, "plain", **options)
    asked: list[Any] = []
    get = zarr.Array.__getitem__

    def noting(array: zarr.Array[Any], selection: Any) -> Any:
        asked.append(selection)
        return get(array, selection)

    monkeypatch.setattr(zarr.Array, "__getitem__", noting)
    window = Window.centre(run.detector, tile_shape=(20, 20))
    pixels = run.source.read([1, 3], window).pixels
    np.testing.assert_array_equal(pixels[:, 0], frames[[1, 3], 20:40, 20:40])
    box = (slice(20, 40), slice(20, 40))
    assert asked == [(slice(1, 2), *box), (slice(3, 4), *box)]
    asked.clear()
    run.source.read([1], Window.tiled(run.detector, tile_shape=(15, 15)))
    assert asked == [slice(1, 2)]


def chunk_files(path: Path) -> list[Path]:
    hidden = ("zarr.json", ".zarray", ".zattrs")
    return sorted(p for p in (path / "frames").rglob("*") if p.is_file() and p.name not in hidden)


@pytest.mark.parametrize(
    ("version", "packing"), [(3, "plain"), (3, "blosc zstd"), (3, "gzip"), (2, "zlib")]
)
@pytest.mark.parametrize("damage", ["empty", "half", "other"])
def test_a_bad_chunk_is_a_read_error_whichever_way_it_is_read(
    tmp_path: Path, version: int, packing: str, damage: str
) -> None:
    """Errors of zlib, and an early end of gzip, were not taken for damage but ended the run."""
    frames = pixels_of(SHAPE, "i2")
    run = make(tmp_path / "theirs.zarr", frames, (2, *SHAPE[1:]), version, packing)
    file = chunk_files(tmp_path / "theirs.zarr")[1]
    data = file.read_bytes()
    file.write_bytes({"empty": b"", "half": data[: len(data) // 2]}.get(damage, bytes(99)))
    window = Window.centre(run.detector, tile_shape=(8, 8))
    bad = int(Reason.READ_ERROR)
    assert run.source.read(range(7)).reasons.tolist() == [0, 0, bad, bad, 0, 0, 0]
    found = run.source.read(range(7), window)
    assert found.reasons.tolist() == [0, 0, bad, bad, 0, 0, 0]
    for event in (0, 1, 4, 5, 6):
        expected = window.take(frames[event], run.detector)
        np.testing.assert_array_equal(found.pixels[event], expected)


@pytest.mark.parametrize("packing", ["plain", "blosc zstd"])
def test_an_absent_chunk_is_its_fill_value_and_an_event_without_any_is_a_hole(
    tmp_path: Path, packing: str
) -> None:
    frames = pixels_of((4, 20, 30), "i2")
    path = tmp_path / "theirs.zarr"
    run = make(path, frames, (1, 20, 15), 3, packing, fill_value=-7)
    (path / "frames" / "c" / "1" / "0" / "0").unlink()
    for side in "01":
        (path / "frames" / "c" / "2" / "0" / side).unlink()
    frames[1, :, :15] = -7
    window = Window.centre(run.detector, tile_shape=(6, 6))
    reading = run.source.read(range(4), window)
    assert reading.reasons.tolist() == [0, 0, Reason.DATA_HOLE, 0]
    for event in (0, 1, 3):
        expected = window.take(frames[event], run.detector)
        np.testing.assert_array_equal(reading.pixels[event], expected)


def test_a_chunk_that_claims_more_than_its_shape_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = pixels_of(SHAPE, "i2")
    run = make(tmp_path / "theirs.zarr", frames, (1, *SHAPE[1:]), 3, "blosc zstd")
    file = chunk_files(tmp_path / "theirs.zarr")[0]
    huge = numcodecs.Blosc(cname="zstd").encode(np.zeros(10**7, "i2"))
    file.write_bytes(huge)

    def unpacking(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(partial, "_decompress", unpacking)
    window = Window.centre(run.detector, tile_shape=(4, 4))
    assert run.source.read([0], window).reasons.tolist() == [Reason.READ_ERROR]


def test_chunks_under_keys_of_any_kind_are_found(tmp_path: Path) -> None:
    frames = pixels_of(SHAPE, "i2")
    kinds = (("v2", "."), ("v2", "/"), ("default", "."))
    for number, (name, separator) in enumerate(kinds):
        encoding = {"name": name, "separator": separator}
        path = tmp_path / f"{number}.zarr"
        run = make(path, frames, (1, *SHAPE[1:]), 3, "plain", chunk_key_encoding=encoding)
        facts = json.loads((path / "frames" / "zarr.json").read_text())
        assert facts["chunk_key_encoding"]["name"] == name
        window = Window.centre(run.detector, tile_shape=(4, 4))
        expected = [window.take(frame, run.detector) for frame in frames]
        np.testing.assert_array_equal(run.source.read(range(7), window).pixels, expected)
