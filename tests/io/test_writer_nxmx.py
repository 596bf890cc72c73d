"""NXmx for DIALS: bit for bit, every pixel in its place, what is missing said before scoring."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from commands import run as command
from planted import ArrayFrames, panelled_detector, planted_run

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import OutputExists, UsageError
from sfxreduce.io.geometry.crystfel import parse_geometry
from sfxreduce.io.open import open_run
from sfxreduce.io.store.metadata import illegal_value
from sfxreduce.io.writers.nxmx import write_nxmx
from sfxreduce.io.writers.nxmx_content import (
    NxmxContent,
    modules_of,
    nxmx_mask,
    parse_sensor,
    trusted_range,
)
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.columns import event_columns
from sfxreduce.run.detector import Detector, Panel
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Reading, Run

DETECTOR = "/entry/instrument/detector"
LAYER = parse_sensor("Si:320um", detector="")

GEOM = """
photon_energy = 9000 eV
clen = 0.1 m
adu_per_photon = 10
res = 10000
data = /entry_1/data_1/data
dim0 = %
dim1 = ss
dim2 = fs
a/min_fs = 0
a/max_fs = 9
a/min_ss = 0
a/max_ss = 11
a/corner_x = -12.5
a/corner_y = 3.25
a/fs = +0.999950x +0.009999y -0.001z
a/ss = -0.009999x +0.999950y
a/coffset = 0.0005
b/min_fs = 10
b/max_fs = 19
b/min_ss = 0
b/max_ss = 11
b/corner_x = 1.5
b/corner_y = -14.0
b/fs = -1.0y
b/ss = +1.0x
b/res = 5000
"""


def content_of(run: Run, **settings: object) -> NxmxContent:
    return NxmxContent(source=run.source, columns=run.columns, layer=LAYER, **settings)


def known(run: Run) -> Run:
    """The same run, with a gain."""
    assert isinstance(run.source, ArrayFrames)
    detector = replace(run.detector, adu_per_photon=10.0, saturation_adu=16383.0)
    return replace(run, source=replace(run.source, detector=detector))


def corners_in(file: h5py.File) -> np.ndarray:
    """Corners of every module in the laboratory in metres, along its chain of axes."""
    corners = []
    modules = [
        g for g in file[DETECTOR].values() if g.attrs.get("NX_class") == b"NXdetector_module"
    ]
    for group in modules:
        n_y, n_x = group["data_size"][()]
        start, axis = np.zeros(3), group["fast_pixel_direction"]
        assert axis.attrs["depends_on"] == group["slow_pixel_direction"].attrs["depends_on"]
        while (name := axis.attrs["depends_on"]) != b".":
            axis = file[name]
            start = start + axis[()] * axis.attrs["vector"]
        fast, slow = (
            group[name][()] * group[name].attrs["vector"]
            for name in ("fast_pixel_direction", "slow_pixel_direction")
        )
        ends = [(0, 0), (n_x, 0), (0, n_y), (n_x, n_y)]
        corners.append([start + i * fast + j * slow for i, j in ends])
    return np.array(corners)


class TestFrames:
    @pytest.mark.parametrize("panels", [0, 3])
    @pytest.mark.parametrize("codec", ["gzip", "bslz4"])
    @pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "float32"])
    def test_come_back_bit_for_bit(
        self, tmp_path: Path, panels: int, codec: str, dtype: str
    ) -> None:
        run = known(planted_run(n_events=3, panels=panels, dtype=dtype))
        out = tmp_path / "hits.nxs"
        assert write_nxmx(out, content_of(run, codec=codec)) == 0
        expected = run.source.read(range(3)).pixels
        with h5py.File(out) as file:
            data = file["entry/data/data"]
            assert data.dtype == expected.dtype
            assert data.chunks == (1, *run.detector.panel_shape)
            filters = [str(data.id.get_create_plist().get_filter(0)[0])]
            usual = str(h5py.h5z.FILTER_SHUFFLE)
            assert filters == [usual if codec == "gzip" else str(hdf5plugin.BSHUF_ID)]
            np.testing.assert_array_equal(data[()].reshape(expected.shape), expected)

    def test_the_same_hits_give_the_same_bytes(self, tmp_path: Path) -> None:
        run = known(planted_run(n_events=3, panels=3))
        for name in ("a.nxs", "b.nxs"):
            write_nxmx(tmp_path / name, content_of(run))
        assert (tmp_path / "a.nxs").read_bytes() == (tmp_path / "b.nxs").read_bytes()

    def test_what_cannot_be_read_is_no_value_that_dials_trusts(self, tmp_path: Path) -> None:
        run = known(planted_run(n_events=3, panels=3))
        source = run.source

        class Torn(ArrayFrames):
            def read(self, events: object, window: object = None) -> Reading:
                reading = source.read(events)
                reasons = np.array([Reason.READ_ERROR if e == 1 else 0 for e in events], np.uint32)
                missing = np.zeros(run.detector.frame_shape, np.bool_)
                missing[2] = True
                torn = {place: missing for place, e in enumerate(events) if e == 2}
                return Reading(pixels=reading.pixels, reasons=reasons, missing=torn)

        torn = Torn(frames=source.frames, detector=run.detector)
        out = tmp_path / "hits.nxs"
        assert write_nxmx(out, replace(content_of(run), source=torn)) == 1
        hole = illegal_value(np.dtype("int16"))
        with h5py.File(out) as file:
            data = file["entry/data/data"][()].reshape(3, *run.detector.frame_shape)
            low = file[f"{DETECTOR}/underload_value"][()]
        assert (data[1] == hole).all()
        assert (data[2, 2] == hole).all()
        np.testing.assert_array_equal(data[2, :2], source.frames[2, :2])
        assert hole < low

    def test_nothing_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "hits.nxs").write_text("mine")
        with pytest.raises(OutputExists, match="already exists"):
            write_nxmx(tmp_path / "hits.nxs", content_of(known(planted_run(n_events=1))))

    def test_a_run_without_hits_is_a_file_all_the_same(self, tmp_path: Path) -> None:
        write_nxmx(tmp_path / "hits.nxs", content_of(known(planted_run(n_events=0, panels=3))))
        with h5py.File(tmp_path / "hits.nxs") as file:
            assert file["entry/data/data"].shape == (0, 120, 60)


class TestEvents:
    def test_energies_and_times_are_those_of_the_run(self, tmp_path: Path) -> None:
        run = known(planted_run(n_events=3))
        energies = np.array([9000.0, math.nan, 9100.0])
        columns = event_columns(
            3,
            event_id=["a", "b", "c"],
            timestamp_ns=10**18 + np.array([0, 1, 2]) * 10**9,
            photon_energy_ev=energies,
        )
        write_nxmx(tmp_path / "hits.nxs", content_of(replace(run, columns=columns)))
        with h5py.File(tmp_path / "hits.nxs") as file:
            beam = file["entry/instrument/beam"]
            # One that is not known is the median of the others: NXmx has no word for "unknown".
            assert beam["incident_energy"][()].tolist() == [9000.0, 9050.0, 9100.0]
            wavelength = 12398.419843320026 / np.array([9000.0, 9050.0, 9100.0])
            np.testing.assert_allclose(beam["incident_wavelength"][()], wavelength)
            assert beam["incident_wavelength"].attrs["units"] == b"angstrom"
            assert file["entry/start_time"][()] == b"2001-09-09T01:46:40.000Z"
        back = open_run(tmp_path / "hits.nxs").columns
        assert back["event_id"].values.tolist() == ["a", "b", "c"]
        np.testing.assert_array_equal(back["timestamp_ns"], columns["timestamp_ns"])

    def test_one_energy_of_all_is_one_number(self, tmp_path: Path) -> None:
        write_nxmx(tmp_path / "hits.nxs", content_of(known(planted_run(n_events=3))))
        with h5py.File(tmp_path / "hits.nxs") as file:
            assert file["entry/instrument/beam/incident_wavelength"].shape == ()


class TestGeometry:
    def test_a_single_panel_comes_back_where_it_was(self, tmp_path: Path) -> None:
        run = known(planted_run(n_events=2))
        write_nxmx(tmp_path / "hits.nxs", content_of(run))
        back = open_run(tmp_path / "hits.nxs").detector
        assert back.panels[0].corner == pytest.approx(run.detector.panels[0].corner, abs=1e-9)
        for name in ("pixel_size_m", "distance_m", "adu_per_photon", "saturation_adu"):
            assert getattr(back, name) == getattr(run.detector, name)
        np.testing.assert_array_equal(back.mask != 0, run.detector.mask != 0)

    def test_panels_lie_where_the_detector_has_them(self, tmp_path: Path) -> None:
        run = known(planted_run(n_events=1, panels=3))
        write_nxmx(tmp_path / "hits.nxs", content_of(run))
        with h5py.File(tmp_path / "hits.nxs") as file:
            corners = corners_in(file)
        for panel, of in zip(run.detector.placed(), corners, strict=True):
            first, fast, slow = (np.array(v) for v in (panel.corner, panel.fast, panel.slow))
            expected = [first, first + 60 * fast, first + 40 * slow]
            np.testing.assert_allclose(of[:3, :2], np.array(expected) * 75e-6, atol=1e-12)
            assert of[0, 2] == run.detector.distance_m

    def test_a_crystfel_geometry_keeps_every_coordinate(self, tmp_path: Path) -> None:
        # Offsets along the beam, slanting axes, pixels of two sizes, a shared frame.
        geometry = tmp_path / "two.geom"
        geometry.write_text(GEOM)
        frames = np.zeros((2, 12, 20), np.int16)
        with h5py.File(tmp_path / "run.cxi", "w") as file:
            file["entry_1/data_1/data"] = frames
        run = open_run(tmp_path / "run.cxi", geometry=geometry)
        write_nxmx(tmp_path / "hits.nxs", content_of(run))
        expected = parse_geometry(GEOM, file="two.geom").corners_m()
        with h5py.File(tmp_path / "hits.nxs") as file:
            np.testing.assert_allclose(corners_in(file), expected, rtol=0, atol=1e-9)
            origins = [file[f"{DETECTOR}/module_{n:03}/data_origin"][()].tolist() for n in (0, 1)]
        assert origins == [[0, 0], [0, 10]]

    @pytest.mark.parametrize("skew", [1e-5, 9e-4])
    def test_almost_right_angles_are_made_right(self, skew: float) -> None:
        panel = Panel(name="p", corner=(0, 0), fast=(1.0, 0.0), slow=(skew, math.sqrt(1 - skew**2)))
        detector = Detector(name="d", panel_shape=(100, 100), panels=(panel,), pixel_size_m=1e-4)
        module = modules_of(detector)[0]
        assert abs(np.dot(module.fast, module.slow)) < 1e-12
        # Half the angle each: the far end of a row or column of 100 moves by this many pixels.
        for ours, theirs in ((module.fast, panel.fast), (module.slow, panel.slow)):
            assert 100 * math.dist(ours[:2], theirs) <= 50 * skew * 1.001

    def test_slanting_pixels_are_refused(self) -> None:
        panel = Panel(name="bent", corner=(0, 0), slow=(0.1, 0.995))
        detector = Detector(name="d", panel_shape=(10, 10), panels=(panel,), pixel_size_m=1e-4)
        with pytest.raises(UsageError, match="'bent' at a right angle"):
            modules_of(detector)

    def test_every_bad_pixel_stays_bad(self) -> None:
        detector = panelled_detector(2)
        bits = np.random.default_rng(1).integers(0, 2**32, detector.frame_shape, np.uint32)
        bits[:, ::2] = 0
        mask = nxmx_mask(detector.with_mask(bits))
        np.testing.assert_array_equal(mask != 0, bits.reshape(mask.shape) != 0)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "uint32", "float32"])
    def test_trusted_values_leave_out_what_a_hole_reads_as(self, dtype: str) -> None:
        low, high = trusted_range(np.dtype(dtype), math.nan)
        hole = illegal_value(np.dtype(dtype))
        assert not low <= hole <= high
        # DIALS holds them as 32 bits with a sign.
        assert -(2**31) < low <= 0 < high < 2**31


class TestSensors:
    @pytest.mark.parametrize(
        ("text", "material", "micrometres"),
        [
            ("Si:320um", "Si", 320), ("CdTe:0.75mm", "CdTe", 750), ("GaAs:500 µm", "GaAs", 500),
            ("JUNGFRAU", "Si", 320), ("eiger", "Si", 450),
        ],
    )  # fmt: skip
    def test_that_are_known(self, text: str, material: str, micrometres: float) -> None:
        layer = parse_sensor(text, detector="")
        assert layer.material == material
        assert layer.thickness_m == pytest.approx(micrometres * 1e-6)

    @pytest.mark.parametrize(
        "text", ["Si", "320um", "Ge:1mm", "Si:320", "Si:320km", "Si:1.2.3um", "Si:320m", "Si:0um"]
    )
    def test_that_are_not_understood(self, text: str) -> None:
        with pytest.raises(UsageError, match=r"--sensor: expected"):
            parse_sensor(text, detector="")

    @pytest.mark.parametrize("name", ["camera-1750", "eiger-4m", "PILATUS3 6M", ""])
    def test_a_name_that_does_not_say_it_is_not_guessed_at(self, name: str) -> None:
        with pytest.raises(UsageError, match="give them as --sensor"):
            parse_sensor("", detector=name)


class TestCommand:
    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        path = tmp_path / "run.zarr"
        ingest_run(known(planted_run(n_events=9, panels=3)), out=path, pool=SerialPool())
        return path

    def test_a_master_links_by_a_relative_path(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        outs = ["--cxi", tmp_path / "sub" / "hits.cxi", "--nxmx", tmp_path / "hits.nxs"]
        done = filtered(source, *outs, "--sensor", "jungfrau")
        assert done.exit_code == 0, done.output
        with h5py.File(tmp_path / "hits.nxs") as file:
            link = file["entry/data"].get("data", getlink=True)
            assert (link.filename, link.path) == ("sub/hits.cxi", "/entry_1/data_1/slab")
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        (tmp_path / "sub").rename(moved / "sub")
        (tmp_path / "hits.nxs").rename(moved / "hits.nxs")
        with h5py.File(moved / "hits.nxs") as file, h5py.File(moved / "sub" / "hits.cxi") as cxi:
            frames = cxi["/entry_1/data_1/data"][()]
            np.testing.assert_array_equal(file["entry/data/data"][()], frames.reshape(-1, 120, 60))

    def test_the_gain_is_told_as_dials_wants_it(self, source: Path, tmp_path: Path) -> None:
        done = filtered(source, "--nxmx", tmp_path / "hits.nxs", "--sensor", "Si:320um")
        assert done.exit_code == 0, done.output
        assert "dials.find_spots gain=10 min_spot_size=1" in done.output
        bslz4 = ["--nxmx-codec", "bslz4", "--sensor", "eiger", "--json"]
        again = filtered(source, "--nxmx", tmp_path / "b.nxs", *bslz4)
        assert f"to read {tmp_path / 'b.nxs'} with other programs: export HDF5_" in again.stderr
        assert '"dials_gain": 10.0' in again.stdout
        assert f'"nxmx": "{tmp_path / "b.nxs"}"' in again.stdout

    @pytest.mark.parametrize(
        ("words", "option"),
        [
            (["--nxmx", "hits.nxs"], "--sensor"),
            (["--nxmx", "hits.nxs", "--sensor", "Ge:1mm"], "--sensor"),
            (["--sensor", "Si:320um"], "--sensor"),
            (["--cxi", "a.cxi", "--nxmx", "a.nxs", "--nxmx-codec", "bslz4"], "--nxmx-codec"),
            (["--nxmx-codec", "bslz4"], "--nxmx-codec"),
        ],
    )
    def test_what_does_not_fit_ends_before_anything_is_scored(
        self, source: Path, tmp_path: Path, words: list[str], option: str
    ) -> None:
        in_folder = [tmp_path / w if w.endswith((".nxs", ".cxi")) else w for w in words]
        done = filtered(source, *in_folder)
        assert done.exit_code == 2
        assert option in str(done.exception)
        assert {path.name for path in tmp_path.iterdir()} == {"run.zarr"}

    @pytest.mark.parametrize(
        ("field", "option"),
        [
            ("distance_m", "--distance-m"),
            ("pixel_size_m", "--pixel-size-m"),
            ("adu_per_photon", "--adu-per-photon"),
        ],
    )
    def test_what_is_missing_is_named_and_then_enough(
        self, tmp_path: Path, field: str, option: str
    ) -> None:
        run = known(planted_run(n_events=6))
        detector = replace(run.detector, **{field: math.nan})
        source = tmp_path / "run.zarr"
        bare = replace(run, source=replace(run.source, detector=detector))
        ingest_run(bare, out=source, pool=SerialPool())
        words = ["--nxmx", tmp_path / "hits.nxs", "--sensor", "eiger"]
        done = filtered(source, *words)
        assert done.exit_code == 2
        assert re.search(rf"--nxmx: DIALS .*{option}.*--geometry FILE", str(done.exception))
        value = getattr(run.detector, field)
        done = filtered(source, *words, option, value, "--dry-run")
        assert done.exit_code == 0, done.output

    def test_both_appear_or_neither(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(path: Path, content: object) -> int:
            raise OutputExists(f"{path}: already exists")

        monkeypatch.setattr("sfxreduce.io.writers.cxi_process.write_nxmx_in_subprocess", fails)
        words = ["--cxi", tmp_path / "a.cxi", "--nxmx", tmp_path / "a.nxs", "--sensor", "eiger"]
        assert filtered(source, *words).exit_code != 0
        shown = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
        assert shown == {"run.zarr"}


def filtered(source: Path, *words: object) -> object:
    out = source.with_name(f"hits{len(list(source.parent.iterdir()))}.zarr")
    peaks = ["--scorer", "peaks", "--threshold", 0, "--serial"]
    return command("filter", "--in", source, "--out", out, *peaks, *words)
