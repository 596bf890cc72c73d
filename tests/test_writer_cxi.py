"""CXI for CrystFEL: bit for bit, to the specification, the same bytes every time."""

from __future__ import annotations

import math
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.columns import MISSING_TIME, event_columns
from sfxreduce.decide import Reason
from sfxreduce.errors import OutputError, OutputExists, SchemaError
from sfxreduce.geometry import Detector, Panel
from sfxreduce.io.readers.cxi import CxiFrames, open_cxi
from sfxreduce.io.writers import cxi_process
from sfxreduce.io.writers.cxi import write_cxi
from sfxreduce.io.writers.cxi_content import CxiContent, PeakTable
from sfxreduce.io.writers.cxi_process import write_cxi_in_subprocess
from sfxreduce.io.writers.geom import format_geometry, write_event_list, write_geometry
from sfxreduce.peaks import Peaks
from sfxreduce.run import Run

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
    assert back.detector.panels == run.detector.panels
    np.testing.assert_array_equal(back.detector.mask, run.detector.mask)
    for name in ("pixel_size_m", "distance_m", "adu_per_photon", "saturation_adu", "name"):
        assert getattr(back.detector, name) == getattr(run.detector, name)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_file_obeys_the_specification(tmp_path: Path, shape: tuple[int, ...]) -> None:
    run = source_run(tmp_path, shape)
    out = tmp_path / "hits.cxi"
    write_cxi(out, content_of(run))
    slab = (math.prod(shape[:-1]), shape[-1])
    with h5py.File(out) as file:
        assert file["cxi_version"][()] == 160
        assert file["cxi_version"].dtype.kind == "i"
        assert file["number_of_entries"][()] == 1
        link = file.get("/entry_1/data_1/data", getlink=True)
        assert isinstance(link, h5py.SoftLink)
        assert link.path == DATA
        data = file["/entry_1/data_1/data"]
        assert data.shape == (4, *slab)
        assert data.attrs["axes"] == "experiment_identifier:y:x"
        assert (data.chunks, data.compression, data.compression_opts) == ((1, *slab), "gzip", 1)
        assert data.shuffle
        assert data.fletcher32
        names = file["/entry_1/data_1/experiment_identifier"].asstr()[()]
        assert names.tolist() == [f"événement {i}" for i in range(4)]
        mask = file["/entry_1/data_1/mask"]
        assert (mask.dtype, mask.shape) == (np.dtype("uint32"), slab)
        assert file[f"{DETECTOR}/corner_position"].shape[-1] == 3
        energy = file["/entry_1/instrument_1/source_1/energy"][()]
        np.testing.assert_allclose(energy[0], 9000 * 1.602176634e-19)
        assert file[f"{DETECTOR}/score"].attrs["headings"] == "score"
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
    )
    write_cxi(tmp_path / "hits.cxi", replace(content_of(run), peaks=table))
    with h5py.File(tmp_path / "hits.cxi") as file:
        y, x = (int(file[f"/entry_1/result_1/peak{axis}PosRaw"][0, 0]) for axis in "YX")
        assert file["/entry_1/data_1/data"][0, y, x] == frame[2, 4, 1]


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
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("raise ImportError('no h5py')", "status 1 and said 'ImportError: no h5py'"),
        ("import sys; sys.exit(3)", "status 3 and said 'nothing'"),
    ],
)
def test_a_writer_that_dies_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    content = content_of(source_run(tmp_path))
    out = tmp_path / "hits.cxi"

    def run(path: Path, _: CxiContent) -> subprocess.CompletedProcess[bytes]:
        path.write_bytes(b"half a file")
        return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)

    monkeypatch.setattr(cxi_process, "_run", run)
    with pytest.raises(OutputError, match=message):
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
    monkeypatch.setattr("sfxreduce.io.writers.cxi.BLOCK_BYTES", 2 * 12 * 10 * 2)
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

    table = PeakTable.of([peaks(3, 1), peaks(), peaks(2)])
    assert table.count.tolist() == [2, 0, 1]
    assert table.intensity.tolist() == [3, 1, 2]
    assert PeakTable.of([]).count.shape == (0,)


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
