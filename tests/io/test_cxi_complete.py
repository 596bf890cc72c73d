"""Nothing is written that CrystFEL would refuse: what is missing is named before work begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from archived import Call

from sfxreduce.io.geometry.crystfel import parse_geometry
from sfxreduce.io.placed import read_geometry

DETECTOR = "/entry_1/instrument_1/detector_1"
KNOWN: dict[str, Any] = {
    f"{DETECTOR}/x_pixel_size": 1e-4,
    f"{DETECTOR}/distance": 0.15,
    f"{DETECTOR}/adu_per_photon": 20.0,
    "/LCLS/photon_energy_eV": 9000.0,
    f"{DETECTOR}/saturation_value": 16000.0,
}
OPTIONS = {
    "--pixel-size-m": (f"{DETECTOR}/x_pixel_size", "5e-5", "res"),
    "--distance-m": (f"{DETECTOR}/distance", "0.25", "clen"),
    "--adu-per-photon": (f"{DETECTOR}/adu_per_photon", "33", "gain"),
    "--photon-energy-ev": ("/LCLS/photon_energy_eV", "7000", "energy"),
}


def write_run(path: Path, shape: tuple[int, ...] = (40, 50), *, without: str = "") -> None:
    """Four events, two of them bright."""
    rng = np.random.default_rng(3)
    frames = rng.normal(0, 3, (4, *shape)).astype("i2")
    frames[1::2, ..., 5::9, 5::9] += 900
    with h5py.File(path, "w") as file:
        file["/entry_1/data_1/data"] = frames
        for name, value in KNOWN.items():
            if name != without:
                file[name] = value


def filtered(call: Call, folder: Path, *more: object) -> tuple[int, Any, str]:
    words = ("filter", "--in", folder / "run.cxi", "--out", folder / "hits.zarr", "--cxi",
             folder / "hits.cxi", "--scorer", "peaks", "--serial")  # fmt: skip
    return call(*words, *more)


def value_of(folder: Path, name: str) -> float:
    """What the written geometry says."""
    found = read_geometry(folder / "hits.geom")
    [panel] = found.panels
    assert found.distance is not None
    if name == "energy":
        assert found.energy is not None
        assert found.energy.path == "/LCLS/photon_energy_eV"
        with h5py.File(folder / "hits.cxi") as file:
            return float(file[found.energy.path][0])
    known = {"res": 1 / panel.res, "clen": found.distance.value, "gain": panel.gain[0]}
    return known[name]


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_missing_is_named_and_an_option_says_it(
    tmp_path: Path, call: Call, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, value, name = OPTIONS[option]
    write_run(tmp_path / "run.cxi", without=path)
    with monkeypatch.context() as patched:
        patched.setattr("sfxreduce.pipeline.filter.score_run", None)  # nothing may be scored
        status, printed, errors = filtered(call, tmp_path)
    assert (status, printed["exit_status"]) == (2, 2)
    others = [other for other in OPTIONS if other != option]
    assert f"CrystFEL refuses a geometry without {option}," in errors
    assert not any(other in errors for other in others)
    assert [p.name for p in tmp_path.iterdir()] == ["run.cxi"]
    status, _, errors = filtered(call, tmp_path, option, value)
    assert status == 0, errors
    assert value_of(tmp_path, name) == pytest.approx(float(value))


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_precedes_the_geometry_file_and_that_the_run(
    tmp_path: Path, call: Call, option: str
) -> None:
    _, value, name = OPTIONS[option]
    write_run(tmp_path / "run.cxi")
    (tmp_path / "d.geom").write_text("""clen = 0.5
photon_energy = 8000
adu_per_eV = 0.005
res = 20000
p/min_fs = 0
p/max_fs = 49
p/min_ss = 0
p/max_ss = 39
p/corner_x = -25
p/corner_y = -20
p/fs = x
p/ss = y
""")
    status, _, errors = filtered(call, tmp_path, "--geometry", tmp_path / "d.geom", option, value)
    assert status == 0, errors
    found = read_geometry(tmp_path / "hits.geom")
    [panel] = found.panels
    assert found.energy is not None
    assert found.distance is not None
    seen: dict[str, Any] = {
        "res": 1 / panel.res, "clen": found.distance.value, "gain": panel.gain,
        "energy": found.energy.value,
    }  # fmt: skip
    expected: dict[str, Any] = {"res": 5e-5, "clen": 0.5, "gain": (0.005, "eV"), "energy": 8000}
    expected[name] = (33.0, "photon") if name == "gain" else float(value)
    assert seen.pop("gain") == expected.pop("gain")
    assert seen == pytest.approx(expected)
    with h5py.File(tmp_path / "hits.cxi") as file:
        assert file["/LCLS/photon_energy_eV"][0] == expected["energy"]
        assert file[f"{DETECTOR}/distance"][()] == pytest.approx(expected["clen"])


def test_without_a_geometry_frames_and_list_are_written_all_the_same(
    tmp_path: Path, call: Call
) -> None:
    write_run(tmp_path / "run.cxi", without=f"{DETECTOR}/adu_per_photon")
    status, report, errors = filtered(call, tmp_path, "--cxi-without-geometry")
    assert (status, report["kept"]) == (0, 2), errors
    assert not (tmp_path / "hits.geom").exists()
    assert len((tmp_path / "hits.lst").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [("--distance-m", "150"), ("--pixel-size-m", "0.075"), ("--photon-energy-ev", "9.5"),
     ("--adu-per-photon", "-1"), ("--distance-m", "nan")],
)  # fmt: skip
def test_a_number_in_another_unit_is_refused(
    tmp_path: Path, call: Call, option: str, value: str
) -> None:
    write_run(tmp_path / "run.cxi")
    status, _, errors = filtered(call, tmp_path, option, value)
    assert (status, f"sfxreduce: {option}: expected " in errors) == (2, True)


def test_a_path_with_a_line_break_is_refused(tmp_path: Path, call: Call) -> None:
    """The list has one line an event; such a path would make two of it."""
    write_run(tmp_path / "run.cxi")
    status, _, errors = filtered(call, tmp_path, "--cxi", tmp_path / "a\nb.cxi")
    assert (status, "expected a path that fits on a line" in errors) == (2, True)


def test_the_saturation_and_every_bit_of_a_mask_reach_crystfel(tmp_path: Path, call: Call) -> None:
    """Private bits above those of the specification once came back to life."""
    write_run(tmp_path / "run.cxi")
    mask = np.zeros((40, 50), "u4")
    mask[3, 4] = 1 << 31
    with h5py.File(tmp_path / "run.cxi", "r+") as file:
        file[f"{DETECTOR}/mask"] = mask
    assert filtered(call, tmp_path)[0] == 0
    [panel] = read_geometry(tmp_path / "hits.geom").panels
    assert panel.max_adu == 16000
    [part] = panel.masks
    with h5py.File(tmp_path / "hits.cxi") as file:
        bits = file[part.data][()]
    np.testing.assert_array_equal((bits & part.bad_bits) != 0, mask != 0)


@pytest.mark.parametrize("cxi_filter", ["gzip", "blosc"])
def test_readers_are_told_where_their_filter_is(
    tmp_path: Path, call: Call, cxi_filter: str
) -> None:
    write_run(tmp_path / "run.cxi")
    status, report, errors = filtered(call, tmp_path, "--cxi-filter", cxi_filter)
    assert status == 0, errors
    line = f"export HDF5_PLUGIN_PATH={hdf5plugin.PLUGIN_PATH}"
    assert (line in errors) is (cxi_filter == "blosc")
    assert report["plugin_path"] == (hdf5plugin.PLUGIN_PATH if cxi_filter == "blosc" else None)


@pytest.mark.parametrize("layout", ["modules", "slab"])
def test_the_geometry_points_to_datasets_that_are_there(
    tmp_path: Path, call: Call, layout: str
) -> None:
    write_run(tmp_path / "run.cxi", (3, 20, 50))
    status, _, errors = filtered(call, tmp_path, "--cxi-layout", layout)
    assert status == 0, errors
    text = (tmp_path / "hits.geom").read_text()
    found = parse_geometry(text, file="hits.geom")
    assert found.energy is not None
    with h5py.File(tmp_path / "hits.cxi") as file:
        for panel in found.panels:
            frames, mask = file[panel.data], file[panel.masks[0].data]
            assert frames.ndim == len(panel.dims)
            assert mask.shape == frames.shape[1:] == (60, 50)
        assert file[found.energy.path].shape == (2,)
        assert set(file[found.peak_list]) >= {"nPeaks", "peakXPosRaw", "peakTotalIntensity"}
        shape = file["/entry_1/data_1/data"].shape
    assert shape == ((2, 3, 20, 50) if layout == "modules" else (2, 60, 50))
