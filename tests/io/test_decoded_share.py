"""What a source says of the cost of a window, and that no chunk is decoded twice for one event."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, ZstdCodec

from sfxreduce.cluster import SerialPool
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.concatenate import join_runs
from sfxreduce.io.readers.hdf5 import bitshuffle
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.batch import score_events
from sfxreduce.run.detector import Detector
from sfxreduce.run.run import Run, decoded_share, events_per_chunk, select_run
from sfxreduce.run.window import Window
from sfxreduce.scorers.protocol import EventScores, not_counted

DATA = "/entry_1/instrument_1/detector_1/data"
SIDE, TILE, N_EVENTS = 40, (8, 8), 6
BSLZ4 = dict(hdf5plugin.Bitshuffle(cname="lz4"))
BSZSTD = dict(hdf5plugin.Bitshuffle(cname="zstd"))
GZIP = {"compression": "gzip", "shuffle": True}


def frames_of() -> np.ndarray:
    """Noise, with a peak in the middle of two events, and one at the edge of another."""
    frames = np.random.default_rng(1).poisson(3, (N_EVENTS, SIDE, SIDE)).astype("u2")
    frames[[1, 4], SIDE // 2, SIDE // 2] = frames[5, 0, 0] = 50
    return frames


def cxi(path: Path, chunks: tuple[int, ...] | None, **packing: Any) -> Run:
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, data=frames_of(), chunks=chunks, **packing)
        file["/entry_1/data_1/mask"] = np.zeros((SIDE, SIDE), np.uint8)
    return open_run(path)


def theirs(path: Path, chunks: tuple[int, ...], compressors: Any, **more: Any) -> Run:
    group = zarr.create_group(str(path))
    array = group.create_array(
        "frames",
        shape=(N_EVENTS, SIDE, SIDE),
        dtype="u2",
        chunks=chunks,
        compressors=compressors,
        **more,
    )
    array[...] = frames_of()
    return open_run(path)


def ours(path: Path) -> Run:
    """A run store; its tiles are halves and quarters of what a small frame has."""
    run = theirs(path / "theirs.zarr", (1, SIDE, SIDE), None)
    ingest_run(run, out=path / "run.zarr", pool=SerialPool())
    return open_run(path / "run.zarr")


def tiles(detector: Detector, part: slice = slice(None)) -> Window:
    """All 25 tiles, or some of them, the nearest to the middle first."""
    return Window.tiled(detector, tile_shape=TILE).part(part)


class TestShare:
    """A share is that of the chunks which hold any pixel of the window."""

    @pytest.mark.parametrize(
        ("chunks", "packing", "first", "rest"),
        [
            ((1, SIDE, SIDE), GZIP, 1.0, 1.0),
            ((1, SIDE, SIDE), BSZSTD, 1.0, 1.0),
            ((1, 8, SIDE), BSZSTD, 0.6, 1.0),
            ((1, *TILE), BSLZ4, 0.36, 0.64),
            ((1, *TILE), GZIP, 0.36, 0.64),
            ((3, *TILE), BSLZ4, 0.36, 0.64),
        ],
    )
    def test_of_chunks_that_are_decoded_whole(
        self, tmp_path: Path, chunks: tuple[int, ...], packing: Any, first: float, rest: float
    ) -> None:
        run = cxi(tmp_path / "run.cxi", chunks, **packing)
        shares = [
            decoded_share(run.source, tiles(run.detector, part))
            for part in (slice(9), slice(9, None), slice(None))
        ]
        assert shares == pytest.approx([first, rest, 1.0])
        assert events_per_chunk(run.source) == chunks[0]

    def test_of_what_can_be_fetched_in_parts_is_that_of_the_rows(self, tmp_path: Path) -> None:
        """Packed blocks are larger than these frames; a share counts the pixels asked for."""
        frame = (1, SIDE, SIDE)
        runs = [
            cxi(tmp_path / "contiguous.cxi", None),
            cxi(tmp_path / "plain.cxi", frame),
            cxi(tmp_path / "blosc.cxi", frame, **hdf5plugin.Blosc()),
            cxi(tmp_path / "bitshuffle.cxi", frame, **BSLZ4),
            theirs(tmp_path / "plain.zarr", frame, None),
            theirs(tmp_path / "blosc.zarr", frame, BloscCodec()),
        ]
        for run in runs:
            centre = Window.centre(run.detector, tile_shape=TILE)
            assert decoded_share(run.source, centre) == pytest.approx(
                (7 * SIDE + 8) / SIDE**2, abs=1e-9
            )
            assert decoded_share(run.source, tiles(run.detector)) == 1.0

    @pytest.mark.parametrize("shards", [None, (N_EVENTS, SIDE, SIDE)])
    def test_of_other_zarr_is_that_of_the_chunks_even_in_shards(
        self, tmp_path: Path, shards: tuple[int, ...] | None
    ) -> None:
        whole = theirs(tmp_path / "whole.zarr", (2, SIDE, SIDE), ZstdCodec())
        tiled = theirs(tmp_path / "tiled.zarr", (1, *TILE), ZstdCodec(), shards=shards)
        first = tiles(whole.detector, slice(9))
        assert decoded_share(whole.source, first) == 1.0
        assert decoded_share(tiled.source, first) == pytest.approx(0.36)
        assert [events_per_chunk(run.source) for run in (whole, tiled)] == [2, 1]

    def test_of_a_run_store_is_that_of_its_tiles(self, tmp_path: Path) -> None:
        run = ours(tmp_path)
        layout = run.source.layout  # type: ignore[attr-defined]
        one = Window(name="one", tile_shape=(1, 1), origins=((0, 0),))
        assert decoded_share(run.source, one) == 1 / layout.tiles_per_event
        assert decoded_share(run.source, tiles(run.detector)) == 1.0
        assert events_per_chunk(run.source) == 1

    def test_is_passed_on_by_what_wraps_a_source(self, tmp_path: Path) -> None:
        run = cxi(tmp_path / "run.cxi", (3, *TILE), **BSLZ4)
        first = tiles(run.detector, slice(9))
        for outer in (select_run(run, np.array([1, 4])), join_runs([run, run])):
            assert decoded_share(outer.source, first) == pytest.approx(0.36)
            assert events_per_chunk(outer.source) == 3

    def test_of_a_source_that_does_not_know_is_all_of_it(self, tmp_path: Path) -> None:
        cxi(tmp_path / "run.cxi", (1, *TILE), **BSLZ4)
        run = open_run(tmp_path / "run.cxi", untrusted=True)
        assert decoded_share(run.source, tiles(run.detector, slice(1))) == 1.0
        assert events_per_chunk(run.source) == 1

    @settings(
        max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
    )
    @given(
        sides=st.tuples(st.integers(3, SIDE), st.integers(3, SIDE)),
        origins=st.lists(st.tuples(st.integers(-7, 39), st.integers(-7, 39)), min_size=1),
    )
    def test_is_what_a_look_at_every_pixel_gives(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        sides: tuple[int, int],
        origins: list[tuple[int, int]],
    ) -> None:
        run = cxi(tmp_path_factory.mktemp("share") / "run.cxi", (1, *sides), **GZIP)
        window = Window(name="some", tile_shape=TILE, origins=tuple(dict.fromkeys(origins)))
        shown = window.gather(run.detector)
        rows, columns = np.divmod(shown[shown >= 0], SIDE)
        touched = set(zip(rows // sides[0], columns // sides[1], strict=True))
        n_chunks = -(-SIDE // sides[0]) * -(-SIDE // sides[1])
        assert decoded_share(run.source, window) == pytest.approx(len(touched) / n_chunks)


@dataclass(frozen=True)
class BrightestAtFirst:
    """The highest pixel, of nine tiles first."""

    name = "brightest"
    settings = "none"
    calibration = None

    def window(self, detector: Detector) -> Window:
        return tiles(detector)

    def first_window(self, detector: Detector) -> Window:
        return tiles(detector, slice(9))

    def look_first(self, parts: Iterable[NDArray[np.generic]], detector: Detector) -> EventScores:
        score = np.concatenate([self(pixels, detector) for pixels in parts])
        nothing = np.zeros(len(score), np.uint8), np.zeros(len(score), np.uint32)
        return EventScores(score, *nothing, *not_counted(len(score)), first=score)

    def __call__(
        self,
        pixels: NDArray[np.generic],
        detector: Detector,
    ) -> NDArray[np.float32]:
        return pixels.reshape(len(pixels), -1).max(axis=1).astype(np.float32)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Counter[str]]:
    """Count chunks that are unpacked by zlib and by bitshuffle, and those HDF5 is asked for."""
    count: Counter[str] = Counter()
    unpacker, read_direct, get = (
        zlib.decompressobj,
        h5py.Dataset.read_direct,
        h5py.Dataset.__getitem__,
    )

    def unpacking(*args: Any) -> Any:
        count["gzip"] += 1
        return unpacker(*args)

    unshuffle = bitshuffle._function()

    def unshuffling(*args: Any) -> int:
        count["bitshuffle"] += 1
        return int(unshuffle(*args))

    def reading(
        dataset: h5py.Dataset, out: np.ndarray, source: Any = None, dest: Any = None
    ) -> None:
        count["hdf5"] += len(out) // dataset.chunks[0]
        read_direct(dataset, out, source, dest)

    def getting(dataset: h5py.Dataset, selection: Any, **how: Any) -> Any:
        found = get(dataset, selection, **how)
        if dataset.ndim == 3:
            count["hdf5"] += found.size // int(np.prod(dataset.chunks))
        return found

    monkeypatch.setattr(zlib, "decompressobj", unpacking)
    monkeypatch.setattr(bitshuffle, "_function", lambda: unshuffling)
    monkeypatch.setattr(h5py.Dataset, "read_direct", reading)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", getting)
    return lambda: count


class TestRounds:
    """A source whose chunk is a frame is looked at once."""

    @pytest.mark.parametrize(
        ("kind", "packing", "events_in_chunk"),
        [
            ("gzip", GZIP, 1),
            ("bitshuffle", BSLZ4, 1),
            ("bitshuffle", BSLZ4, 3),
            ("hdf5", BSZSTD, 1),
            ("hdf5", BSZSTD, 3),
        ],
    )
    @pytest.mark.parametrize("first", [True, False])
    def test_no_chunk_is_decoded_twice(
        self,
        tmp_path: Path,
        decoded: Callable[[], Counter[str]],
        kind: str,
        packing: Any,
        events_in_chunk: int,
        first: bool,
    ) -> None:
        run = cxi(tmp_path / "run.cxi", (events_in_chunk, SIDE, SIDE), **packing)
        decoded().clear()
        rows = score_events(run.source, BrightestAtFirst(), range(N_EVENTS), first=first)
        assert decoded() == {kind: N_EVENTS // events_in_chunk}
        assert (rows["tiles"] == 25).all()

    def test_rows_are_the_same_however_the_run_is_stored(self, tmp_path: Path) -> None:
        runs = [
            ours(tmp_path),
            cxi(tmp_path / "gzip.cxi", (1, SIDE, SIDE), **GZIP),
            cxi(tmp_path / "modules.cxi", (1, 8, SIDE), **BSLZ4),
            cxi(tmp_path / "tiles.cxi", (1, *TILE), **BSLZ4),
            cxi(tmp_path / "several.cxi", (4, SIDE, SIDE), **BSLZ4),
            theirs(tmp_path / "blosc.zarr", (1, SIDE, SIDE), BloscCodec()),
        ]
        rows = [
            score_events(run.source, BrightestAtFirst(), range(N_EVENTS), first=True)
            for run in runs
        ]
        assert rows[0]["tiles"].tolist() == [25] * N_EVENTS
        for other in rows[1:]:
            assert other.tobytes() == rows[0].tobytes()

    def test_an_event_that_cannot_be_read_is_flagged_and_the_others_are_scored(
        self, tmp_path: Path
    ) -> None:
        run = cxi(tmp_path / "run.cxi", (1, SIDE, SIDE), **GZIP)
        whole = score_events(run.source, BrightestAtFirst(), range(N_EVENTS), first=True)
        with h5py.File(tmp_path / "run.cxi", "r+") as file:
            file[DATA].id.write_direct_chunk((2, 0, 0), b"no packed frame")
        rows = score_events(
            open_run(tmp_path / "run.cxi").source,
            BrightestAtFirst(),
            range(N_EVENTS),
            first=True,
        )
        assert np.delete(rows, 2).tobytes() == np.delete(whole, 2).tobytes()
        assert rows["reason"][2]
        assert np.isnan(rows["score"][2])
        assert rows["tiles"][2] == 0
