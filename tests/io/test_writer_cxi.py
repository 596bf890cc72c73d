"""CXI for CrystFEL: bit for bit, to the specification, the same bytes every time."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from planted import ArrayFrames

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import OutputError, OutputExists, SchemaError, UsageError
from sfxreduce.io import process
from sfxreduce.io.chunks import shards
from sfxreduce.io.chunks.blosc import USUAL_PACKING, Packing
from sfxreduce.io.chunks.layout import Layout
from sfxreduce.io.readers.hdf5.run import CxiFrames, open_cxi
from sfxreduce.io.readers.zarr.run import ZarrFrames, open_zarr
from sfxreduce.io.writers.cxi import write_cxi
from sfxreduce.io.writers.cxi_content import CxiContent, PeakTable, plan_blosc_chunks
from sfxreduce.io.writers.cxi_process import write_cxi_in_subprocess
from sfxreduce.io.writers.geom import format_geometry, write_event_list, write_geometry
from sfxreduce.io.writers.shards import ShardJob, encode_shard
from sfxreduce.io.writers.zarr import create_store
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.pipeline.stages.export import peak_table
from sfxreduce.run.columns import MISSING_TIME, event_columns
from sfxreduce.run.detector import Detector, Panel, PixelFlag
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window
from sfxreduce.scorers.peaks.finder import Peaks

DATA = "/entry_1/instrument_1/detector_1/data"
DETECTOR = "/entry_1/instrument_1/detector_1"
SHAPES = [(12, 10), (3, 6, 5)]


def source_run(
    folder: Path, shape: tuple[int, ...] = (12, 10), n: int = 4, dtype: str = "i2"
) -> Run:
    """Write a source with a hole at event 2 if there is one, and everything known about it."""
    frames = (np.arange(n * math.prod(shape)).reshape(n, *shape) - 50).astype(dtype)
    mask = np.zeros(shape, np.uint32)
    mask.flat[7] = 0x200
    n_panels = shape[0] if len(shape) == 3 else 1
    corners = np.array([[-4e-4 + 1e-5 * i, 6e-4 * i, 0.15] for i in range(n_panels)])
    steps = np.array([[[1e-7, 1e-4, 0], [1e-4, -1e-7, 0]]] * n_panels)
    path = folder / "source.cxi"
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, data=frames, chunks=(1, *shape) if n else None)
        file[f"{DETECTOR}/corner_position"] = corners
        file[f"{DETECTOR}/basis_vectors"] = steps
        file[f"{DETECTOR}/x_pixel_size"] = 1e-4
        file[f"{DETECTOR}/distance"] = 0.15
        file[f"{DETECTOR}/adu_per_photon"] = 20.0
        file[f"{DETECTOR}/saturation_value"] = 16383.0
        file[f"{DETECTOR}/mask"] = mask
        file[f"{DETECTOR}/module_identifier"] = [f"panel {i}" for i in range(n_panels)]
    return open_cxi(path)


def columns_of(n: int) -> xr.Dataset:
    return event_columns(
        n,
        event_id=[f"événement {i}" for i in range(n)],
        timestamp_ns=np.array([MISSING_TIME if i == 1 else 10**18 + i for i in range(n)]),
        photon_energy_ev=np.array([math.nan if i == 2 else 9000.0 + i for i in range(n)]),
        pulse_energy_mj=np.arange(n) + 0.5,
    ).assign(
        score=("event", np.arange(n, dtype=np.float32) / 7),
        source_index=("event", np.arange(n) * 3),
    )


def peaks_of(n: int, n_panels: int = 1) -> PeakTable:
    """Event i has i peaks."""
    total = n * (n - 1) // 2
    return PeakTable(
        count=np.arange(n, dtype=np.int32),
        panel=(np.arange(total) % n_panels).astype(np.int32),
        y=np.linspace(0, 4, total, dtype=np.float32),
        x=np.linspace(1, 3, total, dtype=np.float32),
        intensity=np.arange(1, total + 1, dtype=np.float32),
        max_intensity=np.arange(total, dtype=np.float32) / 2,
        snr=np.arange(total, dtype=np.float32) + 6,
        n_pixels=np.arange(1, total + 1, dtype=np.int32),
    )


def content_of(run: Run) -> CxiContent:
    n_panels = len(run.detector.panels)
    return CxiContent(
        source=run.source, columns=columns_of(run.n_events), peaks=peaks_of(run.n_events, n_panels)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "f4"])
def test_what_is_written_comes_back_bit_for_bit(
    tmp_path: Path, shape: tuple[int, ...], dtype: str
) -> None:
    run = source_run(tmp_path, shape, dtype=dtype)
    out = tmp_path / "hits.cxi"
    assert write_cxi(out, content_of(run)) == 0
    back = open_cxi(out)
    written, expected = back.source.read(range(4)), run.source.read(range(4))
    assert written.pixels.dtype == expected.pixels.dtype
    np.testing.assert_array_equal(written.pixels, expected.pixels)
    assert not written.reasons.any()
    for name in ("event_id", "timestamp_ns", "photon_energy_ev", "pulse_energy_mj"):
        values = columns_of(4)[name]
        np.testing.assert_array_equal(back.columns[name].values, values.values)
    # A panel that is the only one has no name in a file.
    only = (replace(run.detector.panels[0], name="p0"),)
    assert back.detector.panels == (run.detector.panels if len(shape) == 3 else only)
    np.testing.assert_array_equal(back.detector.mask, run.detector.mask)
    for name in ("pixel_size_m", "distance_m", "adu_per_photon", "saturation_adu", "name"):
        assert getattr(back.detector, name) == getattr(run.detector, name)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_file_obeys_the_specification(tmp_path: Path, shape: tuple[int, ...]) -> None:
    run = source_run(tmp_path, shape)
    out = tmp_path / "hits.cxi"
    write_cxi(out, content_of(run))
    modules = len(shape) == 3
    with h5py.File(out) as file:
        assert file["cxi_version"][()] == 160
        assert file["cxi_version"].dtype.kind == "i"
        assert file["number_of_entries"][()] == 1
        link = file.get("/entry_1/data_1/data", getlink=True)
        assert isinstance(link, h5py.SoftLink)
        assert link.path == DATA
        data = file["/entry_1/data_1/data"]
        assert data.shape == (4, *shape)
        axes = "module_identifier:y:x" if modules else "y:x"
        assert data.attrs["axes"] == f"experiment_identifier:{axes}"
        chunk = (1, 1, *shape[1:]) if modules else (1, *shape)
        assert (data.chunks, data.compression, data.compression_opts) == (chunk, "gzip", 1)
        implicit = ("y", "x", "coordinate", "dimension")
        for item in ("data", "corner_position", "basis_vectors"):
            # Every axis of an attribute is implicit, or has its values in the same group.
            dataset = file[f"{DETECTOR}/{item}"]
            names = dataset.attrs.get("axes", "y:x" if item == "data" else "").split(":")
            for name, length in zip(names if names != [""] else [], dataset.shape, strict=False):
                assert name in implicit or len(file[DETECTOR][name]) == length
            assert names == [""] or len(names) == dataset.ndim
        # Only panels that are several have names.
        assert ("module_identifier" in file[DETECTOR]) is modules
        assert data.shuffle
        assert data.fletcher32
        names = file["/entry_1/data_1/experiment_identifier"].asstr()[()]
        assert names.tolist() == [f"événement {i}" for i in range(4)]
        mask = file["/entry_1/data_1/mask"]
        assert (mask.dtype, mask.shape) == (np.dtype("uint32"), shape)
        assert file[f"{DETECTOR}/corner_position"].shape[-1] == 3
        energy = file["/entry_1/instrument_1/source_1/energy"][()]
        np.testing.assert_allclose(energy[0], 9000 * 1.602176634e-19)
        # Events are the fastest axis, and there is a heading for each row.
        assert file[f"{DETECTOR}/score"].shape == (1, 4)
        assert file[f"{DETECTOR}/score"].attrs["headings"].tolist() == [b"score"]
        assert file["/entry_1/data_1/source_index"][()].tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("shape", SHAPES)
def test_peak_lists_have_the_form_that_crystfel_reads(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    run = source_run(tmp_path, shape)
    out = tmp_path / "hits.cxi"
    write_cxi(out, content_of(run))
    peaks = peaks_of(4, len(run.detector.panels))
    rows = run.detector.panel_shape[0]
    with h5py.File(out) as file:
        result = file["/entry_1/result_1"]
        # (N, 1) would be read as no peaks at all, without a word.
        assert result["nPeaks"].shape == (4,)
        assert result["nPeaks"].dtype == np.dtype("int32")
        assert result["nPeaks"][()].tolist() == [0, 1, 2, 3]
        start = 0
        for event, count in enumerate(peaks.count):
            of_event = slice(start, start + count)
            row = result["peakYPosRaw"][event]
            expected = peaks.y[of_event] + rows * peaks.panel[of_event]
            np.testing.assert_array_equal(row[:count], expected.astype(np.float32))
            np.testing.assert_array_equal(result["peakXPosRaw"][event, :count], peaks.x[of_event])
            intensity = result["peakTotalIntensity"][event]
            np.testing.assert_array_equal(intensity[:count], peaks.intensity[of_event])
            assert not intensity[count:].any()
            start += count


def test_a_peak_on_a_panel_is_at_the_same_pixel_of_the_slab(tmp_path: Path) -> None:
    run = source_run(tmp_path, (3, 6, 5))
    frame = run.source.read([0]).pixels[0]
    table = PeakTable(
        count=np.array([1, 0, 0, 0], np.int32),
        panel=np.array([2], np.int32),
        y=np.array([4], np.float32),
        x=np.array([1], np.float32),
        intensity=np.ones(1, np.float32),
        max_intensity=np.ones(1, np.float32),
        snr=np.ones(1, np.float32),
        n_pixels=np.ones(1, np.int32),
    )
    for layout, name in (("modules", "slab"), ("slab", "data")):
        out = tmp_path / f"{layout}.cxi"
        write_cxi(out, replace(content_of(run), peaks=table, cxi_layout=layout))
        with h5py.File(out) as file:
            y, x = (int(file[f"/entry_1/result_1/peak{axis}PosRaw"][0, 0]) for axis in "YX")
            assert file[f"/entry_1/data_1/{name}"][0, y, x] == frame[2, 4, 1]


@pytest.mark.parametrize("n", [0, 1, 4])
@pytest.mark.parametrize("cxi_filter", ["gzip", "blosc"])
def test_the_view_of_modules_is_the_slab(tmp_path: Path, n: int, cxi_filter: str) -> None:
    """CrystFEL looks for a peak's panel by row and column alone: modules have to be stacked."""
    content = replace(content_of(source_run(tmp_path, (3, 6, 5), n)), cxi_filter=cxi_filter)
    write_cxi(tmp_path / "modules.cxi", content)
    write_cxi(tmp_path / "slab.cxi", replace(content, cxi_layout="slab"))
    with h5py.File(tmp_path / "modules.cxi") as ours, h5py.File(tmp_path / "slab.cxi") as other:
        for name, view in (("data", "slab"), ("mask", "slab_mask")):
            slab = other[f"/entry_1/data_1/{name}"]
            shown = ours[f"/entry_1/data_1/{view}"]
            assert (shown.shape, shown.dtype) == (slab.shape, slab.dtype)
            np.testing.assert_array_equal(shown[()], slab[()])
        assert "slab" not in other["/entry_1/data_1"]
    for name in ("modules.cxi", "slab.cxi"):
        back = open_cxi(tmp_path / name)
        assert back.detector.frame_shape == (3, 6, 5)
        np.testing.assert_array_equal(
            back.source.read(range(n)).pixels, content.source.read(range(n)).pixels
        )


@pytest.mark.parametrize("tile", [(3, 2), (4, 5), (6, 5)])
def test_tiles_of_modules_are_copied_whatever_their_height(
    tmp_path: Path, tile: tuple[int, int]
) -> None:
    """Panels are an axis of their own: no chunk reaches from one into the next."""
    run = tiled(tmp_path, (3, 6, 5), tile)
    write_cxi(tmp_path / "hits.cxi", replace(content_of(run), cxi_filter="blosc"))
    assert plan_blosc_chunks(run.source, modules=True).copies_tiles
    with h5py.File(tmp_path / "hits.cxi") as file:
        assert file[DATA].chunks == (1, 1, *tile)
        np.testing.assert_array_equal(file[DATA][()], run.source.read(range(4)).pixels)


def test_reasons_are_tags_and_peaks_say_how_good_they_are(tmp_path: Path) -> None:
    run = source_run(tmp_path)
    content = content_of(run)
    reasons = np.array([0, Reason.SATURATED, 0, Reason.SATURATED | Reason.PEAK_COUNT], np.uint32)
    columns = content.columns.assign(reason=("event", reasons))
    write_cxi(tmp_path / "hits.cxi", replace(content, columns=columns))
    peaks = peaks_of(4)
    with h5py.File(tmp_path / "hits.cxi") as file:
        tags = file[f"{DETECTOR}/tags"]
        assert tags.dtype == np.dtype("uint8")
        assert tags[()].tolist() == [[0, 1, 0, 1], [0, 0, 0, 1]]
        assert tags.attrs["headings"].tolist() == [b"saturated", b"peak_count"]
        last = {name: file[f"/entry_1/result_1/{name}"][3] for name in (
            "peakMaximumValue", "peakSNR", "peakNPixels")}  # fmt: skip
    np.testing.assert_array_equal(last["peakMaximumValue"], peaks.max_intensity[3:])
    np.testing.assert_array_equal(last["peakSNR"], peaks.snr[3:])
    np.testing.assert_array_equal(last["peakNPixels"], peaks.n_pixels[3:])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    content = content_of(source_run(tmp_path, (3, 6, 5)))
    write_cxi(tmp_path / "a.cxi", content)
    write_cxi_in_subprocess(tmp_path / "b.cxi", content)
    assert (tmp_path / "a.cxi").read_bytes() == (tmp_path / "b.cxi").read_bytes()


def test_a_frame_that_cannot_be_read_is_a_hole_and_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "source.cxi"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATA, (3, 4, 5), "i2", chunks=(1, 4, 5))
        data[0], data[2] = 1, 2
    run = open_cxi(path)
    content = CxiContent(source=run.source, columns=columns_of(3))
    assert write_cxi_in_subprocess(tmp_path / "hits.cxi", content) == 1
    reading = open_cxi(tmp_path / "hits.cxi").source.read(range(3))
    assert reading.reasons.tolist() == [0, Reason.DATA_HOLE, 0]


def test_no_hits_are_a_file_without_events(tmp_path: Path) -> None:
    run = source_run(tmp_path, n=0)
    out = tmp_path / "hits.cxi"
    assert write_cxi(out, content_of(run)) == 0
    assert open_cxi(out).n_events == 0
    with h5py.File(out) as file:
        assert file["/entry_1/result_1/nPeaks"].shape == (0,)


def test_what_is_not_known_is_left_out_and_comes_back_as_missing(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.cxi", "w") as file:
        file[DATA] = np.ones((2, 4, 5), "i2")
    source = open_cxi(tmp_path / "source.cxi").source
    write_cxi(tmp_path / "hits.cxi", CxiContent(source=source, columns=event_columns(2)))
    with h5py.File(tmp_path / "hits.cxi") as file:
        assert "photon_energy_eV" not in file["LCLS"]
        assert "result_1" not in file["entry_1"]
        assert "distance" not in file[DETECTOR]
        assert file[f"{DETECTOR}/corner_position"].shape == (3,)
    back = open_cxi(tmp_path / "hits.cxi")
    assert math.isnan(back.detector.distance_m)
    assert back.detector.panels[0].corner == (-2.5, -2.0)
    assert np.isnan(back.columns.photon_energy_ev).all()
    assert (back.columns.timestamp_ns == MISSING_TIME).all()
    assert back.columns.event_id.values.tolist() == ["hits-0", "hits-1"]


FITTING = [((12, 10), (6, 4)), ((12, 10), (5, 10)), ((3, 6, 5), (3, 2)), ((3, 6, 5), (6, 5))]
"""Frames and tiles whose grid is that of chunks: it starts anew at every panel."""

OTHERS = [((3, 6, 5), (4, 5)), ((3, 6, 5), (5, 2)), ((12, 10), (13, 10)), ((12, 10), (12, 16))]
"""Tiles that reach below their panel, and tiles that are larger than all chunks may be."""


def tiled(
    folder: Path,
    shape: tuple[int, ...],
    tile: tuple[int, int],
    *,
    packing: Packing = USUAL_PACKING,
    dtype: str = "i2",
) -> Run:
    """Store the source in tiles of a size, two events a shard."""
    run = source_run(folder, shape, dtype=dtype)
    layout = Layout(frame_shape=shape, tile=tile, events_per_shard=2, packing=packing)
    out = folder / "run.zarr"
    create_store(out, run=run, layout=layout, columns=run.columns, truth=None)
    for shard in range(2):
        events = (2 * shard, 2 * shard + 1)
        job = ShardJob(source=run.source, store=str(out), layout=layout, shard=shard, events=events)
        encode_shard(job)
    return open_zarr(out)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tiled(ArrayFrames):
    """Says that its frames lie in tiles."""

    layout: Layout

    def encoded(self, events: Sequence[int]) -> Iterator[list[bytes | None]]:
        raise NotImplementedError


def write_both(folder: Path, run: Run) -> tuple[h5py.Dataset, h5py.Dataset]:
    """Frames of the same content under either filter, as `h5py` reads them."""
    found = []
    for name in ("gzip", "blosc"):
        write_cxi(
            folder / f"{name}.cxi", replace(content_of(run), cxi_filter=name, cxi_layout="slab")
        )
        with h5py.File(folder / f"{name}.cxi") as file:
            found.append(file["/entry_1/data_1/data"][()])
    return found[0], found[1]


@pytest.fixture
def coded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was decoded or encoded."""
    called: list[str] = []
    for name in ("decode", "encode"):
        real = getattr(shards.TileCodec, name)

        def noting(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            called.append(name)
            return real(*args)

        monkeypatch.setattr(shards.TileCodec, name, noting)
    return called


@pytest.mark.parametrize(("shape", "tile"), FITTING)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4"])
def test_stored_tiles_become_chunks_without_being_decoded(
    tmp_path: Path, shape: tuple[int, ...], tile: tuple[int, int], dtype: str, coded: list[str]
) -> None:
    run = tiled(tmp_path, shape, tile, dtype=dtype)
    coded.clear()
    assert (
        write_cxi(
            tmp_path / "hits.cxi", replace(content_of(run), cxi_filter="blosc", cxi_layout="slab")
        )
        == 0
    )
    assert coded == []
    gzip, blosc = write_both(tmp_path, run)
    assert blosc.tobytes() == gzip.tobytes()
    assert isinstance(run.source, ZarrFrames)
    expected = list(run.source.encoded(range(4)))
    with h5py.File(tmp_path / "hits.cxi") as file:
        data = file[DATA]
        assert data.chunks == (1, *tile)
        assert not data.fletcher32
        assert (data.dtype, data.id.get_num_chunks()) == (gzip.dtype, sum(map(len, expected)))
        found = [[b""] * len(tiles) for tiles in expected]
        columns = -(-data.shape[2] // tile[1])
        for i in range(data.id.get_num_chunks()):
            event, y, x = data.id.get_chunk_info(i).chunk_offset
            skipped, stored = data.id.read_direct_chunk((event, y, x))
            assert skipped == 0
            found[event][y // tile[0] * columns + x // tile[1]] = shards.with_crc(stored)
    assert found == expected


@pytest.mark.parametrize(("shape", "tile"), OTHERS)
def test_tiles_on_another_grid_are_packed_anew_panel_by_panel(
    tmp_path: Path, shape: tuple[int, ...], tile: tuple[int, int], coded: list[str]
) -> None:
    run = tiled(tmp_path, shape, tile)
    coded.clear()
    assert (
        write_cxi(
            tmp_path / "hits.cxi", replace(content_of(run), cxi_filter="blosc", cxi_layout="slab")
        )
        == 0
    )
    assert "decode" in coded
    assert coded.count("encode") == 4 * len(run.detector.panels)
    gzip, blosc = write_both(tmp_path, run)
    assert blosc.tobytes() == gzip.tobytes()
    with h5py.File(tmp_path / "hits.cxi") as file:
        assert file[DATA].chunks == (1, *shape[-2:])
        assert list(file[DATA]._filters) == ["32001"]


@pytest.mark.parametrize("tile", [(3, 2), (4, 5)], ids=["copied", "packed anew"])
def test_the_filter_is_that_of_the_store(tmp_path: Path, tile: tuple[int, int]) -> None:
    packing = Packing(cname="lz4", clevel=7, shuffle="shuffle", blocksize=0)
    run = tiled(tmp_path, (3, 6, 5), tile, packing=packing)
    write_cxi(
        tmp_path / "hits.cxi", replace(content_of(run), cxi_filter="blosc", cxi_layout="slab")
    )
    with h5py.File(tmp_path / "hits.cxi") as file:
        created = file[DATA].id.get_create_plist()
        assert created.get_nfilters() == 1
        number, _, settings, _ = created.get_filter(0)
        n_bytes = math.prod(file[DATA].chunks) * 2
        _, stored = file[DATA].id.read_direct_chunk((0, 0, 0))
    assert (number, settings[2:]) == (32001, (2, n_bytes, 7, 1, 1))
    assert stored[2] >> 5 == 1
    np.testing.assert_array_equal(*write_both(tmp_path, run))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_source_without_tiles_is_packed_as_tiles_are(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    run = source_run(tmp_path, shape)
    gzip, blosc = write_both(tmp_path, run)
    assert blosc.tobytes() == gzip.tobytes()
    plan = plan_blosc_chunks(run.source)
    assert (plan.copies_tiles, plan.layout.packing) == (False, USUAL_PACKING)


@given(
    panels=st.integers(1, 4),
    panel=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    tile=st.tuples(st.integers(1, 14), st.integers(1, 14)),
)
def test_a_tile_is_copied_where_a_chunk_of_the_slab_has_its_pixels_and_no_others(
    panels: int, panel: tuple[int, int], tile: tuple[int, int]
) -> None:
    shape = (panels, *panel)
    slab = np.arange(math.prod(shape)).reshape(-1, panel[1])
    layout = Layout(frame_shape=shape, tile=tile, events_per_shard=1)
    chunks = {
        (y, x): slab[y : y + tile[0], x : x + tile[1]]
        for y in range(0, slab.shape[0], tile[0])
        for x in range(0, slab.shape[1], tile[1])
    }
    tiles = [
        slab.reshape(shape)[layout.tile_slices(number)] for number in range(layout.tiles_per_event)
    ]
    by_force = (
        tile[0] <= slab.shape[0]
        and tile[1] <= slab.shape[1]
        and len(chunks) == len(tiles)
        and all(any(np.array_equal(t, c) for c in chunks.values()) for t in tiles)
    )
    detector = Detector(
        name="d", panel_shape=panel, panels=(Panel(name="p", corner=(0, 0)),) * panels, stacked=True
    )
    plan = plan_blosc_chunks(Tiled(frames=slab, detector=detector, layout=layout))
    assert plan.copies_tiles == by_force
    if by_force:
        for number, expected in enumerate(tiles):
            np.testing.assert_array_equal(chunks[plan.offset(number)], expected)


@pytest.mark.parametrize("tile", [(3, 2), (4, 5)], ids=["copied", "packed anew"])
@pytest.mark.parametrize("damage", ["checksum", "header", "absent"])
def test_a_tile_that_cannot_be_copied_is_masked_in_its_event(
    tmp_path: Path, tile: tuple[int, int], damage: str
) -> None:
    run = tiled(tmp_path, (3, 6, 5), tile)
    assert isinstance(run.source, ZarrFrames)
    assert run.source.layout is not None
    before = run.source.read(range(4)).pixels
    tiles = [tile for event in run.source.encoded([2, 3]) for tile in event]
    number = run.source.layout.tiles_per_event + 1
    whole = tiles[number] or b""
    # The header says how many bytes of pixels there are; its own checksum is right.
    other = shards.with_crc(whole[:4] + (6).to_bytes(4, "little") + whole[8:-4])
    tiles[number] = {"checksum": whole[:-1] + b"?", "header": other, "absent": None}[damage]
    shard = tmp_path / "run.zarr" / "frames" / run.source.layout.shard_key(1)
    shard.write_bytes(b"".join(shards.shard_parts(tiles)))
    content = replace(content_of(run), cxi_filter="blosc", cxi_layout="slab")
    out = tmp_path / "hits.cxi"
    assert write_cxi(out, content) == 0
    missing = np.zeros(before.shape, np.bool_)
    missing[3, *run.source.layout.tile_slices(1)] = True
    frames = np.where(missing, -32768, before)
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file[DATA][()].reshape(frames.shape), frames)
        mask = file["/entry_1/data_1/mask"][()].reshape(frames.shape)
    common = run.detector.mask
    np.testing.assert_array_equal(mask, common | np.where(missing, PixelFlag.INVALID, 0))
    np.testing.assert_array_equal(*write_both(tmp_path, run))


@pytest.mark.parametrize("tile", [(3, 2), (4, 5)], ids=["copied", "packed anew"])
def test_the_same_tiles_give_the_same_bytes(tmp_path: Path, tile: tuple[int, int]) -> None:
    content = replace(content_of(tiled(tmp_path, (3, 6, 5), tile)), cxi_filter="blosc")
    write_cxi(tmp_path / "a.cxi", content)
    write_cxi_in_subprocess(tmp_path / "b.cxi", content)
    assert (tmp_path / "a.cxi").read_bytes() == (tmp_path / "b.cxi").read_bytes()


@pytest.mark.parametrize(("shape", "tile"), [*FITTING, *OTHERS])
def test_what_is_copied_comes_back_whole_in_a_window_and_as_a_store(
    tmp_path: Path, shape: tuple[int, ...], tile: tuple[int, int]
) -> None:
    run = tiled(tmp_path, shape, tile)
    write_cxi(
        tmp_path / "hits.cxi", replace(content_of(run), cxi_filter="blosc", cxi_layout="slab")
    )
    back = open_cxi(tmp_path / "hits.cxi")
    frames = run.source.read(range(4)).pixels
    window = Window.centre(back.detector, tile_shape=(3, 3))
    parts = np.array([window.take(frame, back.detector) for frame in frames])
    ingest_run(back, out=tmp_path / "again.zarr", pool=SerialPool())
    for source in (back.source, open_zarr(tmp_path / "again.zarr").source):
        assert source.read(range(4)).pixels.tobytes() == frames.tobytes()
        np.testing.assert_array_equal(source.read(range(4), window).pixels, parts)
        assert not source.read(range(4), window).reasons.any()


def test_no_hits_are_a_file_without_events_under_any_filter(tmp_path: Path) -> None:
    run = source_run(tmp_path, n=0)
    content = replace(content_of(run), cxi_filter="blosc", cxi_layout="slab")
    assert write_cxi(tmp_path / "hits.cxi", content) == 0
    assert open_cxi(tmp_path / "hits.cxi").n_events == 0


def test_an_unknown_filter_is_an_error(tmp_path: Path) -> None:
    content = content_of(source_run(tmp_path))
    with pytest.raises(UsageError, match="expected one of gzip, blosc, found 'lzf'"):
        replace(content, cxi_filter="lzf")


@pytest.mark.parametrize("write", [write_cxi, write_cxi_in_subprocess])
def test_an_existing_file_stays_as_it_is(tmp_path: Path, write: object) -> None:
    content = content_of(source_run(tmp_path))
    (tmp_path / "hits.cxi").write_text("precious")
    assert callable(write)
    with pytest.raises(OutputExists, match=r"hits\.cxi: already exists"):
        write(tmp_path / "hits.cxi", content)
    assert (tmp_path / "hits.cxi").read_text() == "precious"


@pytest.mark.parametrize("write", [write_cxi, write_cxi_in_subprocess])
def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path, write: object) -> None:
    content = content_of(source_run(tmp_path))
    assert callable(write)
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "gone" / "hits.cxi", content)


FULL_DISK = """
import pickle, resource, sys
from pathlib import Path
from sfxreduce.errors import OutputError
from sfxreduce.io.writers.cxi_process import write_cxi_in_subprocess
content = pickle.loads(Path(sys.argv[1]).read_bytes())
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    write_cxi_in_subprocess(Path(sys.argv[2]), content)
except OutputError as error:
    print(f"{type(error).__name__}: {error}")
"""


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with h5py.File(tmp_path / "source.cxi", "w") as file:
        file[DATA] = rng.integers(0, 60_000, (8, 100, 100), np.uint16)
    source = open_cxi(tmp_path / "source.cxi").source
    import_path = tmp_path / "content.pickle"
    import_path.write_bytes(pickle.dumps(CxiContent(source=source, columns=columns_of(8))))
    out = tmp_path / "hits.cxi"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(import_path), str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    # Without a process of its own, HDF5 would have ended this one by a segmentation fault.
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"OutputError: .*hits\.cxi: File too large: at most 160000 bytes are needed, \d+ are free; "
        r"free some space or choose another disk\n",
        done.stdout,
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was ended by SIGSEGV"),
        ("raise ImportError('no h5py')", r"ended with status 1 \(ImportError: no h5py\)"),
        ("import sys; sys.exit(3)", r"ended with status 3 \(it said nothing\)"),
        ("import os; os.write(1, b'+'); os.kill(os.getpid(), 6)", "was ended by SIGABRT"),
    ],
)
def test_a_writer_that_dies_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    content = content_of(source_run(tmp_path))
    out = tmp_path / "hits.cxi"

    def start(module: str, *_: str, stdin: int) -> subprocess.Popen[bytes]:
        out.write_bytes(b"half a file")
        command = [sys.executable, "-c", program]
        return process.start_process(command, stdin=stdin, stderr=subprocess.PIPE)

    monkeypatch.setattr(process, "start_module", start)
    with pytest.raises(OutputError, match=f"{message}.*; is the disk full"):
        write_cxi_in_subprocess(out, content)
    assert not out.exists()


def test_frames_are_held_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = content_of(source_run(tmp_path, n=7))
    asked = []
    read = CxiFrames.read

    def counted(self: CxiFrames, events: range) -> object:
        asked.append(list(events))
        return read(self, events)

    monkeypatch.setattr(CxiFrames, "read", counted)
    monkeypatch.setattr("sfxreduce.io.writers.hdf5.BLOCK_BYTES", 2 * 12 * 10 * 2)
    write_cxi(tmp_path / "hits.cxi", content)
    assert asked == [[0, 1], [2, 3], [4, 5], [6]]


def test_content_of_different_lengths_is_an_error(tmp_path: Path) -> None:
    run = source_run(tmp_path)
    with pytest.raises(SchemaError, match="columns and peaks of 4 events, found 3 and 4"):
        CxiContent(source=run.source, columns=columns_of(3))
    with pytest.raises(SchemaError, match="found 4 and 5"):
        CxiContent(source=run.source, columns=columns_of(4), peaks=peaks_of(5))
    with pytest.raises(SchemaError, match="expected 3 peaks as counted"):
        replace(peaks_of(3), x=np.zeros(2, np.float32))


def test_a_peak_table_holds_the_peaks_of_its_events_in_order() -> None:
    def peaks(*intensities: float) -> Peaks:
        n = len(intensities)
        values = np.array(intensities, np.float32)
        return Peaks(
            panel=np.zeros(n, np.int32),
            y=values,
            x=values,
            intensity=values,
            max_intensity=values,
            snr=values,
            n_pixels=np.ones(n, np.int32),
        )

    table = peak_table([peaks(3, 1), peaks(), peaks(2)])
    assert table.count.tolist() == [2, 0, 1]
    assert table.intensity.tolist() == [3, 1, 2]
    assert peak_table([]).count.shape == (0,)


numbers = st.floats(-5000, 5000).filter(lambda value: value == 0 or abs(value) > 1e-9)


@given(
    corners=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4),
    fast=st.tuples(numbers, numbers),
)
def test_the_geometry_reads_back_to_the_same_numbers(
    corners: list[tuple[float, float]], fast: tuple[float, float]
) -> None:
    panels = tuple(Panel(name=f"q{i}", corner=c, fast=fast) for i, c in enumerate(corners))
    detector = Detector(name="d", panel_shape=(6, 5), panels=panels, stacked=True)
    text = format_geometry(detector)
    # Exponents are not understood in vectors.
    assert not re.search(r"\de[-+]\d", text)
    fields = dict(line.split(" = ", 1) for line in text.splitlines() if " = " in line)
    for i, panel in enumerate(panels):
        assert float(fields[f"p{i}/corner_x"]) == panel.corner[0]
        assert float(fields[f"p{i}/corner_y"]) == panel.corner[1]
        vector = re.fullmatch(r"([-+][\d.]+)x ([-+][\d.]+)y", fields[f"p{i}/fs"])
        assert vector is not None
        assert tuple(map(float, vector.groups())) == panel.fast
        rows = int(fields[f"p{i}/min_ss"]), int(fields[f"p{i}/max_ss"])
        assert rows == (6 * i, 6 * i + 5)


def test_the_geometry_has_the_form_that_crystfel_reads(tmp_path: Path) -> None:
    detector = Detector.centred(
        "camera", (1750, 1750), pixel_size_m=1.1e-4, distance_m=0.15, adu_per_photon=20
    )
    write_geometry(tmp_path / "hits.geom", detector)
    lines = (tmp_path / "hits.geom").read_text().splitlines()
    first_panel = next(i for i, line in enumerate(lines) if line.startswith("p0/"))
    masks = [i for i, line in enumerate(lines) if line.startswith("mask0_")]
    assert len(masks) == 3
    assert max(masks) < first_panel
    assert lines[:4] == [
        "photon_energy = /LCLS/photon_energy_eV eV",
        "clen = 0.15 m",
        "res = 9090.90909090909",
        "adu_per_photon = 20.0",
    ]
    for line in ("peak_list = /entry_1/result_1", "p0/corner_x = -875.0", "p0/max_fs = 1749"):
        assert line in lines
    assert "photon_energy = 9000.5 eV" in format_geometry(detector, photon_energy_ev=9000.5)


def test_what_the_geometry_lacks_is_said_in_a_comment() -> None:
    lines = format_geometry(Detector.centred("camera", (4, 4))).splitlines()
    assert [line for line in lines if line.startswith(";")] == [
        "; clen is not known",
        "; res is not known",
        "; adu_per_photon is not known",
    ]


def test_the_event_list_names_every_event_and_is_never_too_short(tmp_path: Path) -> None:
    path = tmp_path / "hits.lst"
    write_event_list(path, "run7/hits.cxi", 3)
    assert path.read_text().splitlines() == [f"run7/hits.cxi //{i}" for i in range(3)]
    write_event_list(path, "h", 1)
    assert path.read_text() == "./h //0\n"
    assert path.stat().st_size >= 8


def test_a_geometry_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"hits\.geom: cannot be written"):
        write_geometry(tmp_path / "gone" / "hits.geom", Detector.centred("camera", (4, 4)))
