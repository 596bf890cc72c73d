"""CXI and HDF5 runs: what is read, and what is never taken for data."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sfxreduce.errors import RunNotFound, SchemaError, SourceError
from sfxreduce.io.readers.hdf5.run import open_cxi
from sfxreduce.run.columns import MISSING_TIME, select_events
from sfxreduce.run.detector import PixelFlag
from sfxreduce.run.reasons import Reason
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

DATA = "/entry_1/instrument_1/detector_1/data"
DETECTOR = "/entry_1/instrument_1/detector_1"
DEV = Path(__file__).resolve().parents[3] / "shared" / "data" / "independent_sim" / "dev.cxi"


def frames_of(n: int = 4, shape: tuple[int, ...] = (12, 10), dtype: str = "i2") -> np.ndarray:
    """Frames in which no two are alike and no pixel is zero."""
    return (np.arange(n * math.prod(shape)).reshape(n, *shape) % 30000 + 1).astype(dtype)


def write(path: Path, frames: np.ndarray | None = None, **datasets: object) -> Path:
    """Write a CXI file; names of datasets have __ for the slash."""
    with h5py.File(path, "w") as file:
        if frames is not None:
            file.create_dataset(DATA, data=frames, chunks=(1, *frames.shape[1:]))
        for name, values in datasets.items():
            file[name.replace("__", "/")] = values
    return path


def read_all(run: Run) -> np.ndarray:
    reading = run.source.read(range(run.n_events))
    assert not reading.reasons.any()
    return reading.pixels


@pytest.mark.parametrize("dtype", ["i2", "u2", "i4", "u4", "f4", "f8", ">i2"])
@pytest.mark.parametrize("shape", [(12, 10), (3, 6, 5)])
def test_frames_come_out_bit_for_bit_in_their_own_dtype(
    tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    frames = frames_of(shape=shape, dtype=dtype)
    run = open_cxi(write(tmp_path / "run.cxi", frames))
    assert run.source.dtype == np.dtype(dtype).newbyteorder("=")
    assert run.detector.frame_shape == shape
    np.testing.assert_array_equal(read_all(run), frames)


@pytest.mark.parametrize(
    "path", ["entry_1/data_1/data", "entry/data/data", "entry_1/instrument_1/detector_1/data"]
)
def test_frames_are_found_where_cxi_and_nxmx_keep_them(tmp_path: Path, path: str) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file[path] = frames_of()
    np.testing.assert_array_equal(read_all(open_cxi(tmp_path / "run.h5")), frames_of())


def test_frames_elsewhere_are_found_by_name(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.h5", "w") as file:
        file["camera/raw"] = frames_of()
    with pytest.raises(SchemaError, match=r"expected frames at .*found /camera/raw \(4, 12, 10\)"):
        open_cxi(tmp_path / "run.h5")
    run = open_cxi(tmp_path / "run.h5", data_path="/camera/raw")
    np.testing.assert_array_equal(read_all(run), frames_of())


def test_frames_behind_a_soft_link_are_found(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of())
    with h5py.File(path, "a") as file:
        file["/entry_1/data_1/data"] = h5py.SoftLink(DATA)
    np.testing.assert_array_equal(read_all(open_cxi(path)), frames_of())


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        file["/entry_1/data_1/data"] = h5py.SoftLink("/entry_1/data_1/other")
        file["/entry_1/data_1/other"] = h5py.SoftLink("/entry_1/data_1/data")
    with pytest.raises(SchemaError, match="perhaps a circle"):
        open_cxi(tmp_path / "run.cxi")


def test_a_second_entry_is_not_lost_without_a_word(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of(), entry_2__data_1__data=frames_of())
    with pytest.raises(SchemaError, match="found an entry_2 as well"):
        open_cxi(path)
    assert open_cxi(path, data_path="/entry_2/data_1/data").n_events == 4


@pytest.mark.parametrize("values", [np.zeros((4, 5)), np.zeros((2, 2, 2, 2, 2)), "text"])
def test_frames_of_another_rank_are_an_error(tmp_path: Path, values: object) -> None:
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        file[DATA] = values
    with pytest.raises(SchemaError, match=r"\(event, y, x\)"):
        open_cxi(tmp_path / "run.cxi")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    chunks=st.sampled_from([None, (1, 12, 10), (3, 12, 10), (1, 5, 4), (7, 12, 3)]),
    events=st.lists(st.integers(0, 6), max_size=9),
    origins=st.lists(
        st.tuples(st.integers(-3, 12), st.integers(-3, 10)), min_size=1, max_size=3, unique=True
    ),
)
def test_a_window_shows_the_same_pixels_as_the_whole_frame(
    tmp_path: Path,
    chunks: tuple[int, ...] | None,
    events: list[int],
    origins: list[tuple[int, int]],
) -> None:
    frames = frames_of(7)
    path = write(tmp_path / "run.cxi")
    with h5py.File(path, "a") as file:
        file.create_dataset(DATA, data=frames, chunks=chunks)
    run = open_cxi(path)
    window = Window(name="tiles", tile_shape=(4, 5), origins=tuple(origins))
    whole, part = run.source.read(events), run.source.read(events, window)
    assert part.pixels.shape == (len(events), *window.shape)
    np.testing.assert_array_equal(whole.pixels, frames[events])
    for pixels, frame in zip(part.pixels, whole.pixels, strict=True):
        np.testing.assert_array_equal(pixels, window.take(frame, run.detector))


def test_a_window_of_panels_shows_the_same_pixels_as_the_whole_frame(tmp_path: Path) -> None:
    frames = frames_of(3, (4, 6, 5))
    path = tmp_path / "run.cxi"
    with h5py.File(path, "w") as file:
        file.create_dataset(DATA, data=frames, chunks=(1, 1, 6, 5))
    run = open_cxi(path)
    window = Window(name="seam", tile_shape=(8, 5), origins=((9, 0),))
    part = run.source.read([2, 0], window).pixels
    expected = [window.take(frames[event], run.detector) for event in (2, 0)]
    np.testing.assert_array_equal(part, expected)


def test_the_source_is_small_when_pickled_and_reads_the_same(tmp_path: Path) -> None:
    run = open_cxi(write(tmp_path / "run.cxi", frames_of(), entry_1__data_1__mask=np.eye(12, 10)))
    sent = pickle.dumps(run.source)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    np.testing.assert_array_equal(again.read([1]).pixels, run.source.read([1]).pixels)
    assert again.detector is run.detector


def test_without_geometry_the_beam_is_at_the_centre_and_panels_are_a_slab(tmp_path: Path) -> None:
    plain = open_cxi(write(tmp_path / "plain.cxi", frames_of())).detector
    assert [p.corner for p in plain.panels] == [(-5.0, -6.0)]
    assert math.isnan(plain.pixel_size_m)
    assert math.isnan(plain.distance_m)
    stacked = open_cxi(write(tmp_path / "panels.cxi", frames_of(2, (4, 6, 5)))).detector
    assert stacked.assembly().shape == (24, 5)
    np.testing.assert_array_equal(stacked.assembly().ravel(), np.arange(120))


def test_geometry_in_the_file_is_used(tmp_path: Path) -> None:
    detector = open_cxi(
        write(
            tmp_path / "run.cxi",
            frames_of(),
            **{f"{DETECTOR}/distance": 0.15, f"{DETECTOR}/x_pixel_size": 1e-4},
            **{f"{DETECTOR}/corner_position": [-4e-4, -7e-4, 0.15]},
        )
    ).detector
    assert detector.distance_m == 0.15
    assert detector.pixel_size_m == 1e-4
    assert detector.panels[0].corner == (-4.0, -7.0)


def test_corners_of_events_are_not_taken_for_panels(tmp_path: Path) -> None:
    corners = np.arange(12.0).reshape(4, 3) * 1e-4
    geometry = {f"{DETECTOR}/corner_position": corners, f"{DETECTOR}/x_pixel_size": 1e-4}
    path = write(tmp_path / "run.cxi", frames_of(), **geometry)
    assert open_cxi(path).detector.panels[0].corner == (-5.0, -6.0)
    with h5py.File(path, "a") as file:
        file[f"{DETECTOR}/module_identifier"] = ["a", "b", "c", "d"]
    detector = open_cxi(path).detector
    assert detector.frame_shape == (4, 3, 10)
    assert [(p.name, p.corner) for p in detector.panels[:2]] == [("a", (0, 1)), ("b", (3, 4))]
    np.testing.assert_array_equal(read_all(open_cxi(path)), frames_of().reshape(4, 4, 3, 10))


@pytest.mark.parametrize(
    ("values", "flag"),
    [
        (np.array([0, 0x200], np.uint32), PixelFlag.GAP),
        (np.array([0, 4], np.int64), PixelFlag.HOT),
        (np.array([0, 1], np.float64), PixelFlag.BAD),
        (np.array([0, np.nan], np.float32), PixelFlag.BAD),
        (np.array([False, True]), PixelFlag.BAD),
    ],
)
@pytest.mark.parametrize("name", ["/entry_1/data_1/mask", f"{DETECTOR}/mask"])
def test_what_is_not_zero_in_the_mask_is_bad(
    tmp_path: Path, values: np.ndarray, flag: PixelFlag, name: str
) -> None:
    mask = np.full((12, 10), values[0])
    mask[3, 4] = values[1]
    detector = open_cxi(write(tmp_path / "run.cxi", frames_of(), **{name: mask})).detector
    assert detector.mask[3, 4] == flag
    assert np.count_nonzero(detector.mask) == 1


def test_pixels_with_signal_are_not_bad(tmp_path: Path) -> None:
    mask = np.full((12, 10), 0x1000, np.uint32)
    mask[0, 0] = 0x1001
    path = write(tmp_path / "run.cxi", frames_of(), entry_1__data_1__mask=mask)
    assert np.argwhere(open_cxi(path).detector.mask).tolist() == [[0, 0]]


def test_a_pixel_masked_in_some_events_only_stays_good(tmp_path: Path) -> None:
    mask = np.zeros((4, 12, 10), np.uint32)
    mask[:, 1, 1] = 8
    mask[2, 5, 5] = 2
    path = write(tmp_path / "run.cxi", frames_of(), entry_1__data_1__mask=mask)
    assert np.argwhere(open_cxi(path).detector.mask).tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((12, 9), np.uint32), "of the shape of a frame"),
        (np.ones((12, 10), np.uint32), "the other way round"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_an_error(
    tmp_path: Path, mask: np.ndarray, message: str
) -> None:
    path = write(tmp_path / "run.cxi", frames_of(), entry_1__data_1__mask=mask)
    with pytest.raises(SchemaError, match=message):
        open_cxi(path)


JOULE = 8000 * 1.602176634e-19


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("/LCLS/photon_energy_eV", [8e3, 8001, 0, np.nan], [8e3, 8001, np.nan, np.nan]),
        ("/LCLS/photon_energy_eV", [[8e3], [8001], [-1], [8003]], [8e3, 8001, np.nan, 8003]),
        ("/LCLS/photon_energy_eV", 8e3, [8e3] * 4),
        ("/LCLS/photon_energy_eV", [8e3, 8001], [np.nan] * 4),
        ("/entry_1/instrument_1/source_1/energy", JOULE, [8e3] * 4),
        ("/entry_1/instrument_1/source_1/energy", [JOULE, 0, 9e3, JOULE], [8e3, np.nan, 9e3, 8e3]),
        ("/entry/instrument/beam/incident_wavelength", 1.0, [12398.42] * 4),
    ],
)
def test_photon_energies_are_read_or_missing_but_never_borrowed(
    tmp_path: Path, name: str, values: object, expected: list[float]
) -> None:
    run = open_cxi(write(tmp_path / "run.cxi", frames_of(), **{name: values}))
    np.testing.assert_allclose(run.columns.photon_energy_ev, expected, rtol=1e-6)


def test_times_are_exact_and_missing_where_zero_or_absent(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.cxi",
        frames_of(),
        LCLS__machineTime=np.array([1_500_000_000, 0, 1_500_000_001, 1_500_000_002])[:, None],
        LCLS__machineTimeNanoSeconds=[7, 8, 999_999_999, 10**9],
    )
    assert open_cxi(path).columns.timestamp_ns.values.tolist() == [
        1_500_000_000_000_000_007,
        MISSING_TIME,
        1_500_000_001_999_999_999,
        MISSING_TIME,
    ]
    bare = open_cxi(write(tmp_path / "bare.cxi", frames_of())).columns
    assert (bare.timestamp_ns == MISSING_TIME).all()
    assert bare.event_id.values.tolist() == ["bare-0", "bare-1", "bare-2", "bare-3"]
    assert bare.source_event.values.tolist() == [0, 1, 2, 3]
    assert np.isnan(bare.pulse_energy_mj).all()


def test_one_time_for_the_run_is_no_time_of_its_events(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of(), LCLS__machineTime=1_500_000_000)
    assert (open_cxi(path).columns.timestamp_ns == MISSING_TIME).all()


def test_a_column_that_was_never_written_is_missing(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of())
    with h5py.File(path, "a") as file:
        energy = file.create_dataset("/LCLS/photon_energy_eV", (4,), "f8", chunks=(2,), fillvalue=9)
        energy[:2] = 8e3
    expected = [8e3, 8e3, np.nan, np.nan]
    np.testing.assert_array_equal(open_cxi(path).columns.photon_energy_ev, expected)


def test_truth_keeps_its_names_and_attributes(tmp_path: Path) -> None:
    path = write(
        tmp_path / "run.cxi",
        frames_of(),
        truth__kind=np.array([b"hit", b"blank", b"hit", b"weak"]),
        truth__peaks=np.ones((4, 3, 2), np.float32),
        truth__cell=[79.0, 79.0, 38.0],
        truth__name="lysozyme",
    )
    with h5py.File(path, "a") as file:
        file["truth/peaks"].attrs["columns"] = "x, y"
    truth = open_cxi(path).truth
    assert truth is not None
    assert truth.kind.values.tolist() == ["hit", "blank", "hit", "weak"]
    assert truth.peaks.dims == ("event", "peaks_dim1", "peaks_dim2")
    assert truth.peaks.attrs == {"columns": "x, y"}
    assert truth.cell.dims == ("cell_dim0",)
    assert truth.name.item() == "lysozyme"
    assert open_cxi(write(tmp_path / "bare.cxi", frames_of())).truth is None


def test_a_chunk_that_was_never_written_is_a_hole_and_not_zeros(tmp_path: Path) -> None:
    frames = frames_of(6)
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        data = file.create_dataset(DATA, frames.shape, "i2", chunks=(1, 6, 10))
        for event in (0, 1, 3, 5):
            data[event] = frames[event]
        data[4, :6] = frames[4, :6]
    run = open_cxi(tmp_path / "run.cxi")
    reading = run.source.read(range(6))
    hole = int(Reason.DATA_HOLE)
    assert reading.reasons.tolist() == [0, 0, hole, 0, hole, 0]
    np.testing.assert_array_equal(reading.pixels[[0, 1, 3, 5]], frames[[0, 1, 3, 5]])
    assert run.source.read([4, 3], Window.centre(run.detector)).reasons.tolist() == [hole, 0]


def test_events_keep_their_places_around_a_hole(tmp_path: Path) -> None:
    frames = frames_of(6)
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        data = file.create_dataset(DATA, frames.shape, "i2", chunks=(1, 12, 10))
        data[:5] = frames[:5]
    reading = open_cxi(tmp_path / "run.cxi").source.read([0, 5, 1, 2, 5, 3, 1])
    whole = reading.reasons == 0
    assert whole.tolist() == [True, False, True, True, False, True, True]
    np.testing.assert_array_equal(reading.pixels[whole], frames[[0, 1, 2, 3, 1]])


def test_an_open_run_keeps_no_file_open(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of())
    run = open_cxi(path)
    read_all(run)
    # With a handle left open, HDF5 would refuse both.
    with h5py.File(path, "a") as file:
        file["note"] = 1
    with h5py.File(path, "w"):
        pass


@pytest.mark.parametrize("locking", [None, True, False])
def test_a_file_that_the_process_has_open_already_is_read(
    tmp_path: Path, locking: bool | None
) -> None:
    with h5py.File(write(tmp_path / "run.cxi", frames_of()), "r", locking=locking):
        np.testing.assert_array_equal(read_all(open_cxi(tmp_path / "run.cxi")), frames_of())


def test_a_contiguous_dataset_that_was_never_written_is_all_holes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        file.create_dataset(DATA, (3, 4, 5), "i2")
    assert (open_cxi(tmp_path / "run.cxi").source.read(range(3)).reasons == Reason.DATA_HOLE).all()


def virtual_run(folder: Path, sources: list[str], *, panels: bool = False) -> Path:
    """Write a virtual run over one source file for each two events, or for each panel."""
    shape = (4, len(sources), 6, 5) if panels else (2 * len(sources), 6, 5)
    layout = h5py.VirtualLayout(shape, "i2")
    for i, name in enumerate(sources):
        source = h5py.VirtualSource(name, "raw", (4, 6, 5) if panels else (2, 6, 5))
        if panels:
            layout[:, i] = source
        else:
            layout[2 * i : 2 * i + 2] = source
    path = write(folder / "run.cxi")
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset(DATA, layout)
    return path


def test_a_virtual_run_is_read_and_a_missing_source_is_a_hole(tmp_path: Path) -> None:
    frames = frames_of(4, (6, 5))
    write(tmp_path / "a.h5", raw=frames[:2])
    run = open_cxi(virtual_run(tmp_path, ["a.h5", "gone.h5"]))
    reading = run.source.read(range(4))
    assert reading.reasons.tolist() == [0, 0, Reason.DATA_HOLE, Reason.DATA_HOLE]
    np.testing.assert_array_equal(reading.pixels[:2], frames[:2])
    part = run.source.read([1, 3], Window.centre(run.detector, tile_shape=(2, 2)))
    assert part.reasons.tolist() == [0, Reason.DATA_HOLE]


def test_a_hole_in_the_source_of_a_virtual_run_is_a_hole_in_the_run(tmp_path: Path) -> None:
    frames = frames_of(4, (6, 5))
    write(tmp_path / "a.h5", raw=frames)
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file.create_dataset("raw", (4, 6, 5), "i2", chunks=(1, 6, 5))[1:] = frames[1:]
    run = open_cxi(virtual_run(tmp_path, ["a.h5", "b.h5"], panels=True))
    reading = run.source.read(range(4))
    assert reading.reasons.tolist() == [Reason.DATA_HOLE, 0, 0, 0]
    np.testing.assert_array_equal(reading.pixels[1:], np.stack([frames, frames], axis=1)[1:])


def test_a_panel_that_every_event_lacks_is_a_masked_region(tmp_path: Path) -> None:
    frames = frames_of(4, (6, 5))
    write(tmp_path / "a.h5", raw=frames)
    run = open_cxi(virtual_run(tmp_path, ["a.h5", "gone.h5"], panels=True))
    reading = run.source.read(range(4))
    assert not reading.reasons.any()
    np.testing.assert_array_equal(reading.pixels[:, 0], frames)
    assert (reading.pixels[:, 1] == np.iinfo("i2").min).all()
    assert (run.detector.mask[1] == PixelFlag.INVALID).all()
    assert not run.detector.mask[0].any()


@pytest.mark.parametrize("shape", [(1, 6, 5), (2, 6, 4)])
def test_a_source_that_is_smaller_than_promised_leaves_holes(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    write(tmp_path / "a.h5", raw=frames_of(shape[0], shape[1:]))
    write(tmp_path / "b.h5", raw=frames_of(2, (6, 5)))
    run = open_cxi(virtual_run(tmp_path, ["a.h5", "b.h5"]))
    hole = int(Reason.DATA_HOLE)
    assert run.source.read(range(4)).reasons.tolist() == [hole, hole, 0, 0]


@pytest.mark.parametrize("name", ["../secret.h5", "link.h5", "sub/../../secret.h5"])
def test_virtual_sources_outside_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    (folder / "sub").mkdir(parents=True)
    write(tmp_path / "secret.h5", raw=frames_of(2, (6, 5)))
    (folder / "link.h5").symlink_to(tmp_path / "secret.h5")
    with pytest.raises(SchemaError, match="outside the folder"):
        open_cxi(virtual_run(folder, [name]))
    with pytest.raises(SchemaError, match="outside the folder"):
        open_cxi(virtual_run(folder, [str(tmp_path / "secret.h5")]))


def test_a_source_that_leads_on_to_the_outside_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    write(tmp_path / "secret.h5", raw=frames_of(2, (6, 5)))
    with h5py.File(folder / "a.h5", "w") as file:
        file["raw"] = h5py.ExternalLink("../secret.h5", "/raw")
    with pytest.raises(SchemaError, match="outside the folder"):
        open_cxi(virtual_run(folder, ["a.h5"]))


def test_external_links_are_followed_within_the_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "raw").mkdir(parents=True)
    write(folder / "raw" / "a.h5", raw=frames_of())
    write(tmp_path / "secret.h5", raw=frames_of())
    for name, target in (("near", "raw/a.h5"), ("far", "../secret.h5"), ("gone", "raw/b.h5")):
        with h5py.File(folder / f"{name}.cxi", "w") as file:
            file["/entry_1/data_1"] = h5py.SoftLink("/linked")
            file["linked/data"] = h5py.ExternalLink(target, "/raw")
    np.testing.assert_array_equal(read_all(open_cxi(folder / "near.cxi")), frames_of())
    with pytest.raises(SchemaError, match="outside the folder"):
        open_cxi(folder / "far.cxi")
    with pytest.raises(SchemaError, match="expected frames at"):
        open_cxi(folder / "gone.cxi")


@pytest.mark.parametrize("name", [DATA, "/truth/kind", "/LCLS/photon_energy_eV"])
def test_values_in_a_raw_external_file_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret.txt").write_bytes(bytes(4 * 12 * 10 * 2))
    path = write(tmp_path / "run.cxi", frames_of() if name != DATA else None)
    shape = (4, 12, 10) if name == DATA else (4,)
    with h5py.File(path, "a") as file:
        file.create_dataset(name, shape, "i2", external=[(str(tmp_path / "secret.txt"), 0, 960)])
    with pytest.raises(SchemaError, match="raw external file"):
        open_cxi(path)


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, kept: float) -> None:
    whole = write(tmp_path / "run.cxi", frames_of()).read_bytes()
    size = int(kept * len(whole)) if isinstance(kept, float) else kept
    (tmp_path / "run.cxi").write_bytes(whole[:size])
    with pytest.raises(SourceError, match=r"expected a whole HDF5 file, found \d+ bytes") as caught:
        open_cxi(tmp_path / "run.cxi")
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunNotFound, match="expected a file, found none"):
        open_cxi(tmp_path / "absent.cxi")
    with pytest.raises(SourceError, match="found something else"):
        open_cxi(tmp_path)


def test_damaged_metadata_is_never_taken_for_an_absent_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of(), LCLS__photon_energy_eV=np.full(4, 8e3))
    whole = path.read_bytes()
    outcomes = set()
    for node in (b"SNOD", b"TREE", b"HEAP"):
        start = 0
        while (start := whole.find(node, start + 1)) > 0:
            damaged = tmp_path / f"damaged-{start}.cxi"
            damaged.write_bytes(whole[:start] + b"XXXX" + whole[start + 4 :])
            try:
                run = open_cxi(damaged)
            except SourceError:
                outcomes.add("refused")
                continue
            # What was damaged may not have been needed; nothing may have gone missing then.
            reading = run.source.read(range(4))
            assert np.isfinite(run.columns.photon_energy_ev).all()
            good = reading.reasons == 0
            np.testing.assert_array_equal(reading.pixels[good], frames_of()[good])
    assert "refused" in outcomes


@pytest.mark.parametrize("packing", [{"compression": "gzip"}, {"fletcher32": True}])
def test_an_event_that_does_not_decode_is_flagged_and_the_others_are_read(
    tmp_path: Path, packing: dict[str, object]
) -> None:
    frames = frames_of(6)
    path = tmp_path / "run.cxi"
    with h5py.File(path, "w") as file:
        data = file.create_dataset(DATA, data=frames, chunks=(2, 12, 10), **packing)
        chunk = data.id.get_chunk_info(1)
    damaged = bytearray(path.read_bytes())
    damaged[chunk.byte_offset + chunk.size // 2] ^= 0xFF
    path.write_bytes(damaged)
    reading = open_cxi(path).source.read(range(6))
    error = int(Reason.READ_ERROR)
    assert reading.reasons.tolist() == [0, 0, error, error, 0, 0]
    np.testing.assert_array_equal(reading.pixels[[0, 1, 4, 5]], frames[[0, 1, 4, 5]])


def test_a_file_that_vanishes_or_changes_flags_its_events(tmp_path: Path) -> None:
    path = write(tmp_path / "run.cxi", frames_of())
    source = open_cxi(path).source
    write(path, frames_of(4, (6, 6)))
    assert (source.read([0, 1]).reasons == Reason.UNEXPECTED_FORMAT).all()
    path.unlink()
    assert (source.read([0, 1]).reasons == Reason.FILE_UNREADABLE).all()


def test_a_run_without_events_is_a_run(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        file.create_dataset(DATA, (0, 4, 5), "i2")
    run = open_cxi(tmp_path / "run.cxi")
    assert run.n_events == 0
    assert run.source.read([]).pixels.shape == (0, 4, 5)


@pytest.mark.skipif(not DEV.exists(), reason="needs shared/data/independent_sim")
def test_the_independent_simulation_is_read_whole() -> None:
    run = open_cxi(DEV)
    assert (run.n_events, run.source.dtype) == (30, np.dtype("int16"))
    assert run.detector.panels[0].corner == (-875.0, -875.0)
    assert run.detector.distance_m == 0.15
    assert set(run.columns.photon_energy_ev.values) == {8000.0}
    assert run.columns.event_id.values[7] == "ev00007"
    assert run.truth is not None
    assert set(run.truth.kind.values) == {"hit", "weak", "multi", "blank"}
    reading = run.source.read([3], Window.centre(run.detector))
    with h5py.File(DEV, locking=False) as file:
        np.testing.assert_array_equal(reading.pixels[0, 0], file[DATA][3, 700:1050, 700:1050])


def test_every_file_that_frames_come_from_is_an_input_and_counted(tmp_path: Path) -> None:
    """Linked and virtual sources were not named: an output could have replaced one."""
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name, raw=frames_of(2, (6, 5)))
    virtual = open_cxi(virtual_run(tmp_path, ["a.h5", "b.h5"]))
    expected = {(tmp_path / name).resolve() for name in ("run.cxi", "a.h5", "b.h5")}
    assert set(virtual.source.inputs) == set(virtual.inputs) == expected
    assert virtual.source.n_bytes == sum(path.stat().st_size for path in expected)
    with h5py.File(tmp_path / "linked.cxi", "w") as file:
        file[DATA] = h5py.ExternalLink("a.h5", "/raw")
        file["/LCLS/photon_energy_eV"] = h5py.ExternalLink("energy.h5", "/energy")
    write(tmp_path / "energy.h5", energy=[8e3, 8e3])
    linked = open_cxi(tmp_path / "linked.cxi")
    names = {path.name for path in linked.source.inputs}
    assert names == {"linked.cxi", "a.h5", "energy.h5"}
    (tmp_path / "a.h5").unlink()
    assert len(linked.source.inputs) == 3


def test_truth_without_a_value_for_each_event_is_no_truth(tmp_path: Path) -> None:
    """A truth without the dimension `event` ended in a traceback when events were selected."""
    path = write(tmp_path / "run.cxi", frames_of(), truth__cell=[79.0, 79.0, 38.0])
    assert open_cxi(path).truth is None


@pytest.mark.parametrize("n_peaks", [3, 4, 6])
def test_lists_of_peaks_in_our_names_follow_their_events(tmp_path: Path, n_peaks: int) -> None:
    """They were on an axis of their own each, and selecting events asked for `peak`."""
    path = write(
        tmp_path / "run.cxi",
        frames_of(),
        truth__kind=np.arange(4),
        truth__peak_event=np.arange(n_peaks) % 4,
        truth__peak_x=np.arange(n_peaks) * 1.5,
    )
    truth = open_cxi(path).truth
    assert truth is not None
    chosen = select_events(truth, np.array([1, 2]))
    expected = [i for i in range(n_peaks) if i % 4 in (1, 2)]
    assert chosen.peak_x.dims == ("peak",)
    assert chosen.peak_x.values.tolist() == [1.5 * i for i in expected]
    assert chosen.peak_event.values.tolist() == [i % 4 - 1 for i in expected]


def test_only_plain_attributes_come_along_and_none_that_would_change_values(
    tmp_path: Path,
) -> None:
    """References cannot be written as JSON, and a scale factor would be applied once more."""
    path = write(tmp_path / "run.cxi", frames_of(), truth__kind=np.arange(4))
    with h5py.File(path, "a") as file:
        kind = file["truth/kind"]
        kind.attrs.update({"scale_factor": 2.0, "_FillValue": 0, "flag_values": [0, 1]})
        kind.attrs.update({"grid": np.eye(2), "meaning": np.array([b"a", b"b"]), "n": 3})
        kind.attrs["empty"] = h5py.Empty("f4")
        file["truth/axis"] = np.arange(4)
        file["truth/axis"].make_scale("axis")
        kind.dims[0].attach_scale(file["truth/axis"])
    truth = open_cxi(path).truth
    assert truth is not None
    assert truth.kind.attrs == {"flag_values": [0, 1], "meaning": ["a", "b"], "n": 3}
    assert truth.axis.attrs == {}


def test_a_file_name_that_is_no_utf_8_is_written_with_escapes(tmp_path: Path) -> None:
    """Text with half a surrogate cannot be stored, and failed when the columns were written."""
    path = write(tmp_path / "plain.cxi", frames_of()).rename(tmp_path / "run\udcff.cxi")
    run = open_cxi(path)
    texts = [
        run.name,
        run.provenance,
        *run.columns.source_file.values,
        *run.columns.event_id.values,
    ]
    assert all("run\\udcff" in text for text in texts)
    np.testing.assert_array_equal(read_all(run), frames_of())


def test_without_a_mask_pixels_that_are_sentinels_in_all_frames_are_masked(tmp_path: Path) -> None:
    """Gaps of -1 and dead pixels of 65535 in HDF5 files without a mask counted as measurements."""
    frames = frames_of(6)
    frames[:, 3] = -1
    frames[2, 5, 5] = -1
    detector = open_cxi(write(tmp_path / "gap.cxi", frames)).detector
    assert np.unique(np.argwhere(detector.mask)[:, 0]).tolist() == [3]
    assert detector.mask[3, 0] == PixelFlag.GAP
    good = np.zeros((12, 10), np.uint8)
    masked = open_cxi(write(tmp_path / "said.cxi", frames, entry_1__data_1__mask=good)).detector
    assert not masked.mask.any()
    noise = np.random.default_rng(0).normal(0, 3, (6, 12, 10)).astype("i2")
    assert not open_cxi(write(tmp_path / "noise.cxi", noise)).detector.mask.any()
    hot = frames_of(6, dtype="u2")
    hot[:, 1, 1] = 65535
    hot[4, 7, 7] = 65535
    detector = open_cxi(write(tmp_path / "hot.cxi", hot)).detector
    assert np.argwhere(detector.mask).tolist() == [[1, 1]]
    one = np.full((1, 12, 10), -1, "i2")
    assert not open_cxi(write(tmp_path / "one.cxi", one)).detector.mask.any()


FILTERS: dict[str, dict[str, object]] = {
    "none": {},
    "gzip": {"compression": "gzip"},
    "shuffle and gzip": {"compression": "gzip", "shuffle": True},
    "blosc": dict(hdf5plugin.Blosc(cname="zstd", clevel=1, shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle in small blocks": dict(hdf5plugin.Bitshuffle(nelems=16, cname="lz4")),
    "bitshuffle and zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "blosc and checksum": {**hdf5plugin.Blosc(), "fletcher32": True},
    "checksum": {"fletcher32": True},
}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    packing=st.sampled_from(sorted(FILTERS)),
    libver=st.sampled_from(["earliest", "latest"]),
    dtype=st.sampled_from(["<i2", ">i2", "u1", "<f4"]),
    kind=st.sampled_from(["frames", "panels", "slabs"]),
    before=st.sampled_from([0, 512]),
    holes=st.sets(st.integers(0, 6), max_size=2),
    draw=st.data(),
)
def test_a_window_is_the_same_however_the_file_keeps_its_frames(
    tmp_path_factory: pytest.TempPathFactory,
    packing: str,
    libver: str,
    dtype: str,
    kind: str,
    before: int,
    holes: set[int],
    draw: st.DataObject,
) -> None:
    frames = frames_of(7, (4, 9, 10) if kind == "panels" else (36, 10), "i2").astype(dtype)
    sides = [st.sampled_from([max(1, n // 4), n // 2, n]) for n in frames.shape[1:]]
    options = st.none() if packing == "none" else st.nothing()
    chunks = draw.draw(options | st.tuples(st.sampled_from([1, 2, 7]), *sides))
    path = tmp_path_factory.mktemp("cxi") / "run.cxi"
    with h5py.File(path, "w", libver=libver, userblock_size=before) as file:
        data = file.create_dataset(DATA, frames.shape, dtype, chunks=chunks, **FILTERS[packing])
        for event in set(range(7)) - (holes if chunks and chunks[0] == 1 else set()):
            data[event] = frames[event]
        if kind == "slabs":
            file[f"{DETECTOR}/module_identifier"] = ["a", "b", "c", "d"]
            file[f"{DETECTOR}/x_pixel_size"] = 1e-4
            file[f"{DETECTOR}/corner_position"] = [[0, i * 1e-3, 0] for i in range(4)]
    run = open_cxi(path)
    may_be_holes = chunks is not None and chunks[0] == 1
    origin = st.tuples(st.integers(-3, 36), st.integers(-3, 9))
    window = Window(
        name="tiles",
        tile_shape=draw.draw(st.tuples(st.integers(1, 20), st.integers(1, 9))),
        origins=tuple(draw.draw(st.lists(origin, min_size=1, max_size=3))),
    )
    events = draw.draw(st.lists(st.integers(0, 6), min_size=1, max_size=9))
    whole, part = run.source.read(events), run.source.read(events, window)
    np.testing.assert_array_equal(whole.reasons, part.reasons)
    assert part.pixels.dtype == whole.pixels.dtype == run.source.dtype
    for event, reason, one, other in zip(
        events, whole.reasons, whole.pixels, part.pixels, strict=True
    ):
        assert (reason == Reason.DATA_HOLE) == (may_be_holes and event in holes)
        if not reason:
            np.testing.assert_array_equal(one, frames[event].reshape(run.detector.frame_shape))
            np.testing.assert_array_equal(other, window.take(one, run.detector))


@pytest.mark.parametrize("chunks", [None, (1, 1750, 1750), (2, 1750, 1750), (1, 350, 350)])
@pytest.mark.parametrize("packing", ["none", "blosc"])
def test_the_centre_window_costs_only_what_holds_it(
    tmp_path: Path,
    packing: str,
    chunks: tuple[int, ...] | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if packing == "blosc" and chunks is None:
        chunks = (1, 250, 1750)
    frames = np.random.default_rng(0).poisson(3, (2, 1750, 1750)).astype("i2")
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        file.create_dataset(DATA, data=frames, chunks=chunks, **FILTERS[packing])
        file["/entry_1/data_1/mask"] = np.zeros((1750, 1750), np.uint8)
    run = open_cxi(tmp_path / "run.cxi")
    window = Window.centre(run.detector)
    n_fetched, preadv = 0, os.preadv

    def fetching(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        nonlocal n_fetched
        found = preadv(descriptor, buffers, offset)
        n_fetched += found
        return found

    def refusing(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("sfxreduce.io.chunks.blosc.os.preadv", fetching)
    monkeypatch.setattr(h5py.Dataset, "__getitem__", refusing)
    pixels = run.source.read([0, 1], window).pixels
    np.testing.assert_array_equal(pixels[:, 0], frames[:, 700:1050, 700:1050])
    rows = (349 * 1750 + 350) * 2
    if packing == "none":
        assert n_fetched == 2 * (rows if chunks != (1, 350, 350) else 350 * 350 * 2)
    else:
        # A third of the whole, packed: the rows, and the blocks at their ends.
        assert n_fetched < 2 * 1750 * 1750 * 2 / 3 / 3


def test_what_cannot_be_fetched_in_parts_is_left_to_hdf5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = frames_of(4)
    run = open_cxi(write(tmp_path / "run.cxi", frames))

    def failing(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("sfxreduce.io.chunks.blosc.os.preadv", failing)
    window = Window.centre(run.detector, tile_shape=(4, 4))
    reading = run.source.read(range(4), window)
    assert not reading.reasons.any()
    np.testing.assert_array_equal(reading.pixels[:, 0], frames[:, 4:8, 3:7])


def test_numbers_of_odd_width_are_left_to_hdf5(tmp_path: Path) -> None:
    """Twelve bits in two bytes, the first four left out, are no NumPy integers as they lie."""
    frames = np.arange(4 * 120, dtype="u2").reshape(4, 12, 10)
    path = write(tmp_path / "run.cxi")
    with h5py.File(path, "a") as file:
        kind = h5py.h5t.STD_U16LE.copy()
        kind.set_precision(12)
        kind.set_offset(4)
        space = h5py.h5s.create_simple(frames.shape)
        created = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        created.set_create_intermediate_group(True)
        made = h5py.h5d.create(file.id, DATA.encode(), kind, space, lcpl=created)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, frames)
    run = open_cxi(path)
    window = Window.centre(run.detector, tile_shape=(4, 4))
    pixels = run.source.read(range(4), window).pixels
    np.testing.assert_array_equal(pixels[:, 0], frames[:, 4:8, 3:7])


class TestEventsOnTheLastAxis:
    @pytest.mark.parametrize(
        ("shape", "chunks", "more"),
        [
            ((64, 70, 5), None, {}),
            ((64, 70, 60), (64, 70, 1), {}),
            ((64, 70, 60), None, {"/LCLS/photon_energy_eV": np.full(60, 9e3)}),
            ((2, 64, 70, 5), None, {}),
        ],
    )
    def test_they_are_noticed_and_refused(
        self,
        tmp_path: Path,
        shape: tuple[int, ...],
        chunks: tuple[int, ...] | None,
        more: dict[str, np.ndarray],
    ) -> None:
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file.create_dataset("raw", shape, "i2", chunks=chunks, data=np.ones(shape, "i2"))
            for name, values in more.items():
                file[name] = values
        with pytest.raises(SchemaError, match=r"raw: expected \(event, y, x\), .*np\.moveaxis"):
            open_cxi(tmp_path / "run.h5", data_path="/raw")

    def test_names_of_axes_count_more_than_their_lengths(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file["raw"] = np.ones((64, 70, 5), "i2")
            file["raw"].attrs["axes"] = "experiment_identifier:y:x"
            file["small"] = np.ones((6, 7, 8), "i2")
            file["small"].attrs["axes"] = "y:x:experiment_identifier"
        assert open_cxi(tmp_path / "run.h5", data_path="/raw").n_events == 64
        with pytest.raises(SchemaError, match="the last axis seems to be that of the events"):
            open_cxi(tmp_path / "run.h5", data_path="/small")

    def test_as_many_events_as_rows_are_told(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file["raw"] = np.ones((64, 64, 70), "i2")
            file.create_dataset("chunked", (64, 64, 70), "i2", chunks=(1, 64, 70))
        [warning] = open_cxi(tmp_path / "run.h5", data_path="/raw").warnings
        assert "its 64 events have as many rows each" in warning
        assert open_cxi(tmp_path / "run.h5", data_path="/chunked").warnings == ()


class TestUnderload:
    @pytest.mark.parametrize("with_mask", [False, True])
    def test_pixels_below_it_in_all_frames_are_masked(
        self, tmp_path: Path, with_mask: bool
    ) -> None:
        frames = frames_of(6, dtype="i4")
        frames[:, 2, 3] = -9
        frames[1:, 4, 4] = -9
        mask = np.zeros((12, 10), "u4")
        mask[0, 0] = mask[2, 3] = 1
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file["/entry/data/data"] = frames
            file["/entry/instrument/detector/underload_value"] = 0
            if with_mask:
                file["/entry/instrument/detector/pixel_mask"] = mask
        found = open_cxi(tmp_path / "run.h5").detector.mask
        expected = [[0, 0], [2, 3]] if with_mask else [[2, 3]]
        assert np.argwhere(found).tolist() == expected
        assert found[2, 3] == (PixelFlag.GAP if with_mask else PixelFlag.BAD)

    def test_one_above_all_pixels_masks_none(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file["/entry/data/data"] = frames_of(6, dtype="i4")
            file["/entry/instrument/detector/underload_value"] = 1e9
        assert not open_cxi(tmp_path / "run.h5").detector.mask.any()
