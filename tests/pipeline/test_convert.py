"""A run in another format and back: every bit of it, and a list of what the other cannot say."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import h5py
import hdf5plugin
import numpy as np
import pytest
import xarray as xr
from archived import Call
from hypothesis import given, settings
from hypothesis import strategies as st
from measured import elsewhere, traced_peak
from planted import ArrayFrames, planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import OutputError, OutputExists, UsageError
from sfxreduce.io.chunks.layout import choose_layout
from sfxreduce.io.open import open_run
from sfxreduce.io.readers.hdf5 import record as record_module
from sfxreduce.io.store.metadata import detector_to_json
from sfxreduce.io.writers.cxi import write_cxi
from sfxreduce.pipeline import convert
from sfxreduce.pipeline.convert import convert_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector, Panel, Sensor
from sfxreduce.run.run import Reading, Run
from sfxreduce.run.window import Window

DETECTOR = "/entry_1/instrument_1/detector_1"
HERE = mock.patch.object(convert, "write_cxi_in_subprocess", write_cxi)
"""A process for each example would take longer than the rest of it."""


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Any run: dtype, shape, panels, per-event data, mask, geometry, truth, holes."""
    n, seed = draw(st.integers(0, 5)), draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    panels = draw(st.integers(1, 4))
    stacked = panels > 1 or draw(st.booleans())
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)))
    dtype = np.dtype(draw(st.sampled_from(["i1", "u1", "i2", "u2", "i4", "u4", "f4", "f8"])))
    frame_shape = (panels, *shape) if stacked else shape
    raw = rng.integers(0, 256, (n, *frame_shape, dtype.itemsize), np.uint8)
    frames = raw.view(dtype)[..., 0]
    bits = rng.choice([0, 0, 0, 1, 4, 8, 0x200, 0x1001, 0x80000000], size=frame_shape)
    bits.flat[0] = 0
    return Run(
        source=ArrayFrames(frames=frames, detector=draw(detectors(stacked, panels, shape, bits))),
        columns=draw(columns(n, rng)),
        truth=draw(st.sampled_from([None, truth_of(n, rng)])) if n else None,
        experiment=draw(st.sampled_from(["", "lv12"])),
        name="r0007",
        provenance="made up",
    )


@st.composite
def detectors(
    draw: st.DrawFn, stacked: bool, panels: int, shape: tuple[int, int], bits: np.ndarray
) -> Detector:
    number = st.sampled_from([math.nan, 0.1, 7.5e-5, 1.7, 3.14159])
    places = st.floats(-9, 9, allow_nan=False)
    steps = st.tuples(st.floats(-1, 1), st.floats(-1, 1))
    corners = [(draw(places), draw(places)) for _ in range(panels)]
    whole = Panel(name="p0", corner=(-shape[1] / 2, -shape[0] / 2))
    sensor = Sensor(name="q0a1", corner=(1.5, 2.5), rows=(0, 1), columns=(0, shape[1]))
    with_file = draw(st.booleans())
    return Detector(
        name=draw(st.sampled_from(["CSPAD", "détecteur", "a b"])),
        panel_shape=shape,
        panels=tuple(
            replace(whole, name=f"m{i}", corner=corner, fast=draw(steps), slow=draw(steps))
            for i, corner in enumerate(corners)
        ),
        stacked=stacked,
        pixel_size_m=draw(st.sampled_from([math.nan, 7.5e-5, 1.1e-4])),
        distance_m=draw(st.sampled_from([math.nan, 0.1, 0.0873])),
        adu_per_photon=draw(number),
        saturation_adu=draw(number),
        mask=bits.astype(np.uint32),
        sensors=(sensor,) if with_file else (),
        crystfel="clen = 0.1\n; péak" if with_file else "",
    )


@st.composite
def columns(draw: st.DrawFn, n: int, rng: np.random.Generator) -> xr.Dataset:
    known = {
        "event_id": [f"12:{i}" for i in range(n)],
        "timestamp_ns": rng.integers(1, 2**60, n) if draw(st.booleans()) else None,
        "photon_energy_ev": rng.uniform(5000, 9000, n) if draw(st.booleans()) else None,
        "pulse_energy_mj": rng.uniform(0.1, 3, n) if draw(st.booleans()) else None,
    }
    table = event_columns(n, **{k: v for k, v in known.items() if v is not None})
    others: dict[str, Any] = {
        "fiducial": (("event",), rng.integers(0, 2**31, n), {"path": "/LCLS/fiducial"}),
        "stage": (("event", "stage_1"), rng.normal(size=(n, 3)), {"path": "/beam/stage"}),
        "dark": (("event",), rng.integers(0, 2, n).astype(np.uint8), {"long_name": "no beam"}),
        "score": (("event",), rng.random(n, np.float32), {"units": "1"}),
        "source_index": (("event",), np.arange(n) * 3, {}),
        "comment": (("event",), np.array([f"é{i}" * 40 for i in range(n)], object), {}),
        "is_on": (("event",), rng.random(n) < 0.5, {}),
        "spectrum": (("event", "channel"), rng.normal(size=(n, 30)), {}),
    }
    chosen = draw(st.sets(st.sampled_from(sorted(others))))
    return table.assign({name: others[name] for name in sorted(chosen)})


def truth_of(n: int, rng: np.random.Generator) -> xr.Dataset:
    meanings = {"flag_values": [0, 1], "flag_meanings": "blank hit"}
    return xr.Dataset(
        {
            "kind": ("event", rng.integers(0, 2, n).astype(np.uint8), meanings),
            "name": ("event", np.array([f"x{i}" for i in range(n)], object)),
            "peak_event": ("peak", np.sort(rng.integers(0, n, 7))),
            "peak_x": ("peak", rng.random(7, np.float32)),
            "cell": ("cell_dim0", np.array([79.0, 79, 38])),
        }
    )


def assert_same(back: Run, run: Run) -> None:
    """All of it, but for where its events lie."""
    events = range(run.n_events)
    reading, before = back.source.read(events), run.source.read(events)
    assert reading.pixels.dtype == before.pixels.dtype
    assert reading.pixels.shape == before.pixels.shape
    assert reading.pixels.tobytes() == before.pixels.tobytes()
    assert not reading.reasons.any()
    assert detector_to_json(back.detector) == detector_to_json(run.detector)
    np.testing.assert_array_equal(back.detector.mask, run.detector.mask)
    names = ("experiment", "name", "provenance")
    assert [getattr(back, name) for name in names] == [getattr(run, name) for name in names]
    places = ["source_file", "source_event"]
    one, other = (each.columns.reset_coords().drop_vars(places) for each in (back, run))
    assert sorted(map(str, one)) == sorted(map(str, other))
    tables = [(one, other)]
    if run.truth is not None:
        assert back.truth is not None
        tables.append((back.truth, run.truth))
    for found, expected in tables:
        for name, values in expected.items():
            assert found[name].dims == values.dims, name
            np.testing.assert_array_equal(found[name].values, values.values, err_msg=str(name))
            if values.dtype.kind != "O":
                assert found[name].dtype == values.dtype, name


@settings(max_examples=12)
@given(runs(), st.sampled_from(["gzip", "blosc"]), st.sampled_from(["modules", "slab"]))
def test_there_and_back_changes_no_bit(run: Run, cxi_filter: str, cxi_layout: str) -> None:
    with TemporaryDirectory() as name, HERE, mock.patch("os.fsync"):
        folder, pool = Path(name), SerialPool()
        first = convert_run(run, out=folder / "a.zarr", pool=pool)
        assert first.not_carried == ()
        store = open_run(folder / "a.zarr")
        how = {"cxi_filter": cxi_filter, "cxi_layout": cxi_layout}
        there = convert_run(store, out=folder / "b.cxi", pool=pool, **how)
        assert there.not_carried == ()
        assert (there.events, there.unreadable) == (run.n_events, 0)
        file = open_run(folder / "b.cxi")
        assert_same(file, run)
        back = convert_run(file, out=folder / "c.zarr", pool=pool)
        assert back.not_carried == ()
        assert_same(open_run(folder / "c.zarr"), run)
        again = convert_run(open_run(folder / "c.zarr"), out=folder / "d.cxi", pool=pool, **how)
        # The store says where its events were read from; a file is that itself.
        assert again.not_carried == (("source_file",) if run.n_events else ())
        assert_same(open_run(folder / "d.cxi"), run)


def holed_store(folder: Path) -> Path:
    """Event 1 lacks a panel, of event 2 nothing is there."""
    frames = planted_run(n_events=5, panels=3).source
    assert isinstance(frames, ArrayFrames)
    path = folder / "holes.h5"
    with h5py.File(path, "w") as file:
        chunk = (1, 1, *frames.frames.shape[2:])
        data = file.create_dataset(
            "/entry/data/data", frames.frames.shape, "i2", chunks=chunk, fillvalue=-7
        )
        for event, panel in np.ndindex(5, 3):
            if event != 2 and (event, panel) != (1, 1):
                data[event, panel] = frames.frames[event, panel]
    convert_run(open_run(path), out=folder / "holes.zarr", pool=SerialPool())
    return folder / "holes.zarr"


@pytest.mark.parametrize("cxi_filter", ["gzip", "blosc"])
def test_what_is_missing_stays_missing(tmp_path: Path, cxi_filter: str) -> None:
    store, pool = open_run(holed_store(tmp_path)), SerialPool()
    out = tmp_path / "holes.cxi"
    there = convert_run(store, out=out, pool=pool, cxi_filter=cxi_filter)
    back = convert_run(open_run(out), out=tmp_path / "back.zarr", pool=pool)
    assert (there.not_carried, there.unreadable) == (("source_file",), 1)
    assert (back.not_carried, back.unreadable) == ((), 2)
    expected = store.source.read(range(5))
    for path in (out, tmp_path / "back.zarr"):
        run = open_run(path)
        reading = run.source.read(range(5))
        np.testing.assert_array_equal(reading.reasons, expected.reasons)
        np.testing.assert_array_equal(reading.lost, [False, False, True, False, False])
        assert list(reading.missing) == [1]
        assert reading.missing[1].tobytes() == expected.missing[1].tobytes()
        whole = ~reading.lost
        assert reading.pixels[whole].tobytes() == expected.pixels[whole].tobytes()
        np.testing.assert_array_equal(run.detector.mask, store.detector.mask)


def test_a_file_that_was_changed_is_believed(tmp_path: Path) -> None:
    """Its geometry, its columns, and what was added; the record is of before."""
    run = planted_run(n_events=4, panels=3)
    out = tmp_path / "run.cxi"
    convert_run(run, out=out, pool=SerialPool())
    with h5py.File(out, "r+") as file:
        file[f"{DETECTOR}/distance"][...] = 0.2
        file["/LCLS/photon_energy_eV"][...] = 7000.0
        file["/beam/added"] = np.arange(4)
    found = open_run(out)
    assert found.detector.distance_m == 0.2
    assert found.columns["photon_energy_ev"].values.tolist() == [7000.0] * 4
    assert found.columns["added"].values.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("content", [b"[", b'{"schema": "sfxreduce.run", "schema_version": 1}'])
def test_a_garbled_record_is_one_line(tmp_path: Path, content: bytes, call: Call) -> None:
    out = tmp_path / "run.cxi"
    convert_run(planted_run(n_events=4), out=out, pool=SerialPool())
    with h5py.File(out, "r+") as file:
        del file["/sfxreduce/run"]
        file["/sfxreduce/run"] = content.decode()
    status, _, errors = call("info", out)
    assert status == 1
    assert errors.count("\n") == 1
    assert "/sfxreduce/run is garbled" in errors


def test_no_record_makes_a_column_of_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planted_run(n_events=4)
    dark = run.columns.assign(dark=("event", np.zeros(4, np.uint8)))
    out = tmp_path / "run.cxi"
    convert_run(replace(run, columns=dark), out=out, pool=SerialPool())
    assert "dark" in open_run(out).columns
    with h5py.File(out, "r+") as file:
        record = json.loads(file["/sfxreduce/run"].asstr()[()])
        record["columns"]["dark"] |= {"path": "/entry_1/data_1/data", "dims": ["event", "y", "x"]}
        del file["/sfxreduce/run"]
        file["/sfxreduce/run"] = json.dumps(record)
    monkeypatch.setattr(record_module, "MOST_ROW_BYTES", 1000)
    assert "dark" not in open_run(out).columns


def test_the_command_says_what_stays_behind(tmp_path: Path, call: Call) -> None:
    source = tmp_path / "run.cxi"
    with h5py.File(source, "w") as file:
        file["/entry_1/data_1/data"] = np.arange(480, dtype="i2").reshape(6, 8, 10)
        file["/LCLS/fiducial"] = np.arange(6)
        file["/beam/spectrum"] = np.zeros((6, 200))
    store, out = tmp_path / "run.zarr", tmp_path / "out.cxi"
    status, facts, errors = call("convert", "--in", source, "--out", store, "--serial")
    assert (status, facts["events"], facts["not_carried"]) == (0, 6, ["/beam/spectrum"]), errors
    status, text, _ = call("convert", "--in", store, "--out", out, "--serial", json_too=False)
    assert status == 0
    assert "not_carried" in text
    assert "source_file" in text
    np.testing.assert_array_equal(open_run(out).columns["fiducial"], np.arange(6))
    blosc = ("--cxi-filter", "blosc", "--overwrite")
    status, facts, errors = call("convert", "--in", store, "--out", out, "--serial", *blosc)
    assert (status, facts["plugin_path"]) == (0, hdf5plugin.PLUGIN_PATH)
    assert f"HDF5_PLUGIN_PATH={hdf5plugin.PLUGIN_PATH}" in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.cxi", "run.cxi", "run.zarr"]


@pytest.mark.parametrize(
    ("name", "error"), [("run.tar", UsageError), ("run", UsageError), ("there.cxi", OutputExists)]
)
def test_an_output_that_cannot_be_written_is_refused(
    tmp_path: Path, name: str, error: type[Exception]
) -> None:
    (tmp_path / "there.cxi").write_text("somebody's")
    with pytest.raises(error, match=name):
        convert_run(planted_run(n_events=3), out=tmp_path / name, pool=SerialPool())
    assert [path.name for path in tmp_path.iterdir()] == ["there.cxi"]


def test_a_file_that_could_not_be_read_again_does_not_appear(tmp_path: Path) -> None:
    run = planted_run(n_events=3)
    bad = run.columns.assign(photon_energy_ev=("event", np.full(3, 5.0)))
    with pytest.raises(OutputError, match=r"out.cxi: cannot be opened again.*200000 eV"):
        convert_run(replace(run, columns=bad), out=tmp_path / "out.cxi", pool=SerialPool())
    assert not list(tmp_path.iterdir())


def placed_run(*, panels: int, dtype: str) -> Run:
    """A planted run of which everything is known that DIALS asks for."""
    run = planted_run(n_events=5, panels=panels, dtype=dtype)
    assert isinstance(run.source, ArrayFrames)
    detector = replace(run.detector, adu_per_photon=9.5)
    columns = run.columns.assign(photon_energy_ev=("event", np.full(5, 9300.0)))
    return replace(run, source=replace(run.source, detector=detector), columns=columns)


@pytest.mark.parametrize("codec", ["gzip", "bslz4"])
@pytest.mark.parametrize(("panels", "dtype"), [(0, "u2"), (3, "i2"), (3, "f4")])
def test_frames_and_places_come_back_from_nxmx(
    codec: str, panels: int, dtype: str, tmp_path: Path
) -> None:
    run = placed_run(panels=panels, dtype=dtype)
    pack = {"nxmx_codec": codec, "sensor": "Si:320um"}
    there = convert_run(run, out=tmp_path / "run.nxs", pool=SerialPool(), **pack)
    file = open_run(tmp_path / "run.nxs")
    back = convert_run(file, out=tmp_path / "back.zarr", pool=SerialPool())
    store = open_run(tmp_path / "back.zarr")
    frames = run.source.read(range(5)).pixels
    for found in (file, store):
        held = found.source.read(range(5)).pixels
        assert held.dtype == frames.dtype
        assert held.tobytes() == frames.tobytes()
        # Panels lie one below the other in it.
        np.testing.assert_array_equal(found.detector.good().ravel(), run.detector.good().ravel())
        for panel, planted in zip(found.detector.placed(), run.detector.placed(), strict=True):
            for name in ("corner", "fast", "slow"):
                apart = np.subtract(getattr(panel, name), getattr(planted, name))
                assert np.abs(apart).max() < 1e-6
        assert found.columns["event_id"].values.tolist() == run.columns["event_id"].values.tolist()
        np.testing.assert_allclose(found.columns["photon_energy_ev"], 9300.0, rtol=1e-12)
    assert (there.events, there.unreadable, back.unreadable) == (5, 0, 0)
    # What has no place in it is told: the truth, and which of the mask's flags a pixel has.
    assert {"truth/kind", "name", "provenance"} <= set(there.not_carried)
    assert (there.plugin_path is None) == (codec == "gzip")


def test_nxmx_is_refused_without_what_dials_needs(tmp_path: Path) -> None:
    whole = placed_run(panels=0, dtype="i2")
    source = whole.source
    assert isinstance(source, ArrayFrames)
    far = replace(
        whole, source=replace(source, detector=replace(whole.detector, distance_m=math.nan))
    )
    out = tmp_path / "run.nxs"
    with pytest.raises(UsageError, match="--sensor"):
        convert_run(whole, out=out, pool=SerialPool())
    with pytest.raises(UsageError, match="--distance-m"):
        convert_run(far, out=out, sensor="Si:320um", pool=SerialPool())
    with pytest.raises(UsageError, match="--nxmx-codec"):
        convert_run(whole, out=out, nxmx_codec="zip", pool=SerialPool())
    assert not list(tmp_path.iterdir())


class EndlessFrames(ArrayFrames):
    """As many events as are asked for, of which it holds one."""

    @property
    def n_events(self) -> int:
        return int(self.path)

    def read(self, events: Sequence[int], window: Window | None = None) -> Reading:
        pixels = np.repeat(self.frames, len(events), axis=0)
        return Reading(pixels=pixels, reasons=np.zeros(len(events), np.uint32))


def peaks(name: str) -> list[int]:
    """Most bytes held at once while few and many frames of 32 kB are converted."""
    frames = np.random.default_rng(1).integers(0, 99, (1, 128, 128)).astype("i2")
    detector = Detector.centred("camera", (128, 128))
    small = partial(choose_layout, target_shard_bytes=1_000_000)
    found = []
    with (
        HERE,
        mock.patch("os.fsync"),
        mock.patch("sfxreduce.io.writers.hdf5.BLOCK_BYTES", 1_000_000),
        mock.patch("sfxreduce.io.writers.shards.READ_BYTES", 1_000_000),
        mock.patch("sfxreduce.pipeline.ingest.choose_layout", small),
        TemporaryDirectory() as folder,
    ):
        for n_events in (4, 64, 512):
            source = EndlessFrames(frames=frames, detector=detector, path=str(n_events))
            run = Run(source=source, columns=event_columns(n_events))
            convert = partial(convert_run, out=Path(folder) / f"{n_events}{name}")
            found.append(traced_peak(lambda: convert(run, pool=SerialPool())))  # noqa: B023
    return found[1:]


@pytest.mark.parametrize("suffix", [".cxi", ".zarr"])
def test_memory_does_not_grow_with_the_run(suffix: str) -> None:
    few, many = elsewhere(__file__, "peaks", suffix)
    assert many < 1.2 * few
