"""Situations that people have reported in public, made by small programs beside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import SchemaError
from sfxreduce.io.masks import GivenMask
from sfxreduce.io.open import open_run
from sfxreduce.io.writers.cxi import write_cxi
from sfxreduce.pipeline import convert
from sfxreduce.pipeline.convert import convert_run
from sfxreduce.run.columns import MISSING_TIME
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"

Make = Callable[[str], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write the files of a case; a test without them is skipped."""

    def written(name: str) -> Path:
        programs = sorted(CASES.glob(f"{name}_*.py"))
        if not programs:
            pytest.skip(f"needs the case {name} in ../shared/cases, which is not here")
        command = [sys.executable, str(programs[0]), str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)
        return tmp_path

    return written


def hits_of(run: Run) -> list[int]:
    """Events with peaks, of the pixels that are not masked."""
    pixels = run.source.read(range(run.n_events)).pixels * run.detector.good()
    strong = pixels.reshape(run.n_events, -1) > 100
    return [int(event) for event in np.flatnonzero(strong.sum(axis=1) > 20)]


@pytest.mark.parametrize("name", ["whole", "aborted"])
def test_a_master_is_one_run_of_the_files_that_are_there(make: Make, name: str) -> None:
    """It was refused, and what the message advised read 4 of 12 events, without a geometry."""
    run = open_run(make("c02") / f"{name}_master.h5")
    assert run.n_events == 12
    assert hits_of(run) == [1, 4, 7, 10]
    assert run.detector.distance_m == pytest.approx(0.12)
    np.testing.assert_allclose(run.columns["photon_energy_ev"], 12398.42, rtol=1e-6)
    missing = "aborted_data_000004.h5, aborted_data_000005.h5: not there"
    assert [missing in text for text in run.warnings] == [True] * (name == "aborted")


@pytest.mark.parametrize("name", ["nomask", "specific", "normal"])
def test_numbers_that_are_no_counts_are_masked(make: Make, name: str) -> None:
    run = open_run(make("c03") / f"{name}.h5")
    assert np.count_nonzero(run.detector.mask) == 4099
    assert hits_of(run) == [1, 4, 7, 10]


def test_events_of_a_virtual_source_that_is_gone_are_holes(make: Make) -> None:
    folder = make("c04")
    run = open_run(folder / "parts.h5")
    reasons = run.source.read(range(12)).reasons
    assert np.flatnonzero(reasons).tolist() == [4, 5, 6, 7]
    assert hits_of(run) == [1, 10]
    assert ["part1.h5: not there" in text for text in run.warnings] == [True]
    assert hits_of(open_run(folder / "renamed.h5")) == [1, 4, 7, 10]


@pytest.mark.parametrize(("name", "n_masked"), [("r0001", 8192), ("r0003", 0)])
def test_a_module_without_a_mask_stops_nothing(make: Make, name: str, n_masked: int) -> None:
    """One that was off has no mask either, and the run was refused."""
    run = open_run(make("c01") / f"{name}.cxi")
    assert np.count_nonzero(run.detector.mask) == n_masked
    reading = run.source.read(range(12))
    whole = np.where(np.isfinite(reading.pixels), reading.pixels, 0) > 100
    strong = whole & run.detector.good()
    assert np.flatnonzero(strong.reshape(12, -1).sum(axis=1) > 20).tolist() == [1, 4, 7, 10]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The same, written once for all tests that only read."""
    folders: dict[str, Path] = {}

    def written(name: str) -> Path:
        programs = sorted(CASES.glob(f"{name}_*.py"))
        if not programs:
            pytest.skip(f"needs the case {name} in ../shared/cases, which is not here")
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            command = [sys.executable, str(programs[0]), str(folder)]
            subprocess.run(command, check=True, capture_output=True)
            folders[name] = folder
        return folders[name]

    return written


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write CXI files in this process: another one for each takes longer than the rest."""
    monkeypatch.setattr(convert, "write_cxi_in_subprocess", write_cxi)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def test_units_of_a_nexus_file_change_nothing(make: Make) -> None:
    """Millimetres were taken for metres, keV for eV, and metres for pixels."""
    folder = make("c08")
    names = ("si.h5", "mm.h5", "um.h5", "beam_m.h5", "kev.h5", "joule.h5", "cxi_kev.cxi")
    for name in names:
        run = open_run(folder / name)
        assert run.detector.distance_m == pytest.approx(0.12), name
        assert run.detector.pixel_size_m == pytest.approx(75e-6), name
        if name.endswith(".h5"):
            assert run.detector.panels[0].corner == pytest.approx((-100, -100)), name
        np.testing.assert_allclose(run.columns["photon_energy_ev"], 12398.42, rtol=1e-6)
    by_shot = open_run(folder / "si_pershot.h5").columns["photon_energy_ev"].values
    np.testing.assert_allclose(by_shot, 12398.4198 / np.linspace(0.99, 1.01, 12), rtol=1e-6)
    for name in ("si_spectrum.h5", "si_poly12.h5"):
        assert np.isnan(open_run(folder / name).columns["photon_energy_ev"].values).all(), name


@pytest.mark.parametrize(
    ("name", "named", "distance"),
    [
        ("two_detectors.cxi", "/entry_1/data_2/data", 0.1),
        ("two_entries.cxi", "/entry_2/data_1/data", None),
        ("entry_and_entry_1.h5", "/entry/data/data", None),
        ("two_detectors_cxi_instr.cxi", "/entry_1/instrument_1/detector_2/data", None),
    ],
)
def test_the_frames_of_two_detectors_have_to_be_named(
    make: Make, name: str, named: str, distance: float | None
) -> None:
    """The second one, which alone saw Bragg peaks, was ignored."""
    path = make("c09") / name
    with pytest.raises(SchemaError, match=r"(name one of them with --data-path|an entry_2 as)"):
        open_run(path)
    run = open_run(path, data_path=named)
    assert run.n_events == 12
    frames = run.source.read(range(12)).pixels
    assert [int(i) for i in np.flatnonzero(frames.max(axis=(1, 2)) > 100)] == [1, 4, 7, 10]
    assert distance is None or run.detector.distance_m == distance


@pytest.mark.parametrize("name", ["gaps_uint8", "gaps_bool", "noisy_uint8", "noisy_float"])
def test_a_mask_in_which_one_is_good_is_noticed_and_read_right_when_that_is_said(
    make: Make, name: str
) -> None:
    """The peak finder rejected every hit, with exit status 0."""
    folder = make("c07")
    assert not open_run(folder / f"good1_{name}.cxi").detector.is_usable()
    run = open_run(folder / f"good1_{name}.cxi", mask=GivenMask(good_is=1))
    assert hits_of(run) == list(range(0, 24, 3))
    if "noisy" in name:
        right = open_run(folder / "good1_right_way.cxi").detector
        np.testing.assert_array_equal(right.good(), run.detector.good())


def test_frames_of_any_size_chunk_and_dtype_are_read_or_refused_in_one_line(make: Make) -> None:
    """(y, x, event) was read as 256 events of 256 x 12 pixels."""
    folder = make("c16")
    refused = {
        "y_x_event": r"\(256, 256, 12\), of which the last axis seems to be that of the events",
        "bool": "to be numbers .*, found bool",
        "szip_like_sz": "packed with filter 32013",
    }
    for path in sorted(folder.glob("*.cxi")):
        if path.stem in refused:
            with pytest.raises(SchemaError, match=refused[path.stem]):
                open_run(path)
        else:
            assert hits_of(open_run(path)) == [1, 4, 7, 10], path.name


@pytest.mark.parametrize(
    ("name", "data_path"),
    [
        *[(f"{name}.zarr", "") for name in ("v2", "v3", "v2slash", "bare", "cols")],
        *[("ome.zarr", "0"), ("otherdata.zarr", "data"), ("otherdata.zarr", "/data")],
    ],
)
def test_frames_of_any_zarr_store_are_read(made: Make, name: str, data_path: str) -> None:
    """The option was ignored without a word, and an array that is the store itself was refused."""
    run = open_run(made("c06") / name, data_path=data_path)
    reading = run.source.read(range(12))
    assert not reading.reasons.any()
    bright = reading.pixels.max(axis=(1, 2)) > 100
    assert np.flatnonzero(bright).tolist() == [1, 4, 7, 10]
    window = Window.centre(run.detector, tile_shape=(100, 100))
    seen = run.source.read([1, 4], window).pixels
    expected = [window.take(frame, run.detector) for frame in reading.pixels[[1, 4]]]
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize(
    ("name", "data_path", "message"),
    [
        ("ome.zarr", "", r"found \['0'\].* --data-path"),
        ("bare.zarr", "x", "found a bare array.* without --data-path"),
        ("otherdata.zarr", "../v3.zarr/frames", r"found \['data'\]"),
        ("cols.zarr", "photon_energy_ev", r"expected frames .* found shape \(12,\)"),
    ],
)
def test_an_array_that_holds_no_frames_is_refused(
    made: Make, name: str, data_path: str, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        open_run(made("c06") / name, data_path=data_path)


@pytest.mark.parametrize(
    ("name", "data_path", "bright", "first"),
    [
        ("sacla.h5", "/tag-{tag}/data", [1, 4, 7, 10], "211996540"),
        ("sacla.h5", "/{tag}/data", [1, 4, 7, 10], "tag-211996540"),
        ("cxi_image_an_entry.cxi", "/entry_{tag}/data_1/data", [1, 4, 7, 10], "1"),
        ("cxi_one_image.cxi", "/entry_1/image_1/data", [0], "cxi_one_image"),
    ],
)
def test_images_that_are_a_dataset_each_are_read(
    made: Make, name: str, data_path: str, bright: list[int], first: str
) -> None:
    """In the order of their numbers, where entry_10 came after entry_1."""
    run = open_run(made("c10") / name, data_path=data_path)
    reading = run.source.read(range(run.n_events))
    assert not reading.reasons.any()
    assert np.flatnonzero(reading.pixels.max(axis=(1, 2)) > 100).tolist() == bright
    assert run.columns["event_id"].values[0] == first
    window = Window.centre(run.detector, tile_shape=(100, 100))
    seen = run.source.read([0], window).pixels
    np.testing.assert_array_equal(seen[0], window.take(reading.pixels[0], run.detector))
    if name == "sacla.h5":
        assert (run.detector.pixel_size_m, run.detector.distance_m) == (50e-6, 0.05)
        assert run.columns["photon_energy_ev"].values.tolist() == [7000.0 + i for i in range(12)]


@pytest.mark.parametrize(
    ("name", "data_path", "message"),
    [
        ("sacla.h5", "", r"with \{tag\} for what differs"),
        ("cxi_image_an_entry.cxi", "", r"with \{tag\} for what differs"),
        ("sacla.h5", "/run-{tag}/data", "expected images at /run-{tag}/data, found none"),
        ("sacla.h5", "/{tag}/{tag}", "expected one {tag} at most"),
        ("sacla.h5", "/{run}/data", "expected frames at /{run}/data"),
    ],
)
def test_a_pattern_that_names_no_images_is_refused(
    made: Make, name: str, data_path: str, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        open_run(made("c10") / name, data_path=data_path)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("name", "n"), [("n0", 0), ("n1", 1), ("n2", 2), ("vds0", 0)])
def test_a_run_of_few_events_is_converted_there_and_back(
    made: Make, tmp_path: Path, name: str, n: int
) -> None:
    run = open_run(made("c14") / f"{name}.cxi")
    assert run.n_events == n
    for out in (tmp_path / "a.zarr", tmp_path / "b.cxi", tmp_path / "c.zarr"):
        assert convert_run(run, out=out, pool=SerialPool()).unreadable == 0
        run = open_run(out)
    before = open_run(made("c14") / f"{name}.cxi").source.read(range(n))
    assert run.source.read(range(n)).pixels.tobytes() == before.pixels.tobytes()


@pytest.mark.usefixtures("in_process")
def test_images_that_were_never_written_are_holes_in_every_format(
    made: Make, tmp_path: Path
) -> None:
    run = open_run(made("c14") / "empty_images.h5")
    for out in (tmp_path / "a.zarr", tmp_path / "b.cxi"):
        assert convert_run(run, out=out, pool=SerialPool()).unreadable == 2
        run = open_run(out)
        assert np.flatnonzero(run.source.read(range(12)).reasons).tolist() == [3, 7]


@pytest.mark.usefixtures("in_process")
def test_times_and_names_come_through_as_they_are(made: Make, tmp_path: Path) -> None:
    """Missing ones stay missing, doubled ones doubled, and fractions of seconds are there."""
    for path in sorted(made("c15").glob("*.cxi")):
        run = open_run(path)
        convert_run(run, out=tmp_path / f"{path.stem}.cxi", pool=SerialPool())
        back = open_run(tmp_path / f"{path.stem}.cxi").columns
        for name in ("timestamp_ns", "event_id"):
            np.testing.assert_array_equal(back[name].values, run.columns[name].values, path.stem)
    seconds = open_run(tmp_path / "float_seconds.cxi").columns["timestamp_ns"].values
    assert (seconds % 1_000_000_000 == 250_000_000).all()
    missing = open_run(tmp_path / "dummy_start.cxi").columns["timestamp_ns"].values
    assert np.flatnonzero(missing == MISSING_TIME).tolist() == [0, 1, 2]


def test_modules_of_a_virtual_file_that_are_off_or_drop_out_are_gaps(make: Make) -> None:
    """The mask of a module that was off, which nobody wrote, had the whole file refused."""
    folder = make("c01")
    for name in ("r0001.cxi", "r0002.cxi"):
        run = open_run(folder / name)
        assert [bool(mask.all()) for mask in run.detector.mask] == [False, False, True, False]
        assert not run.detector.mask[[0, 1, 3]].any()
        assert not run.source.read(range(12)).reasons.any()
    run = open_run(folder / "r0003.cxi")
    assert not run.detector.mask.any()
    reading = run.source.read(range(12))
    assert sorted(reading.missing) == [4, 5, 6, 7]
    for missing in reading.missing.values():
        assert [bool(panel.all()) for panel in missing] == [False, False, True, False]
    assert not open_run(folder / "r0004.cxi").source.read(range(12)).reasons.any()
    with pytest.raises(SchemaError, match=r"\(12, 2, 2, 64, 64\)"):
        open_run(folder / "raw5d.cxi")
