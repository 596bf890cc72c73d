"""Numbers of HDF5 files: the units they say they have, and what cannot be meant."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sfxreduce.errors import SchemaError
from sfxreduce.io.open import open_run
from sfxreduce.run.run import Run

NXMX = "/entry/instrument"
CXI = "/entry_1/instrument_1"
EV = 12398.42


def opened(
    path: Path, *, frames: str = "/entry/data/data", **numbers: tuple[str, object, str]
) -> Run:
    """Open a file with these datasets: path, value, units."""
    with h5py.File(path, "w") as file:
        file[frames] = np.zeros((3, 20, 30), "i4")
        for name, value, units in numbers.values():
            file[name] = value
            if units:
                file[name].attrs["units"] = units
    return open_run(path)


@pytest.mark.parametrize(
    ("distance", "pixel", "beam"),
    [
        ((0.12, ""), (75e-6, ""), (10.0, "")),
        ((0.12, "m"), (75e-6, "m"), (10.0, "pixel")),
        ((120.0, "mm"), (0.075, "mm"), (10.0, "pixels")),
        ((0.12e9, "nm"), (75.0, "um"), (10.0, "px")),
        ((0.12, b"metre"), (75.0, "µm"), (0.75, "mm")),
        ((1.2e9, "angstrom"), (75.0, "micron"), (7.5e-4, "m")),
    ],
)
def test_lengths_are_the_same_in_every_unit(
    tmp_path: Path, distance: tuple[float, str], pixel: tuple[float, str], beam: tuple[float, str]
) -> None:
    run = opened(
        tmp_path / "run.h5",
        distance=(f"{NXMX}/detector/distance", *distance),
        pixel=(f"{NXMX}/detector/x_pixel_size", *pixel),
        x=(f"{NXMX}/detector/beam_center_x", *beam),
        y=(f"{NXMX}/detector/beam_center_y", *beam),
    )
    assert run.detector.distance_m == pytest.approx(0.12)
    assert run.detector.pixel_size_m == pytest.approx(75e-6)
    assert run.detector.panels[0].corner == pytest.approx((-10.0, -10.0))


@pytest.mark.parametrize(
    ("name", "value", "units"),
    [
        (f"{NXMX}/beam/incident_energy", EV, ""),
        (f"{NXMX}/beam/incident_energy", EV / 1e3, "keV"),
        (f"{NXMX}/beam/incident_energy", EV * 1.602176634e-19, "J"),
        (f"{NXMX}/beam/incident_wavelength", 1.0, ""),
        (f"{NXMX}/beam/incident_wavelength", 0.1, "nm"),
        (f"{NXMX}/beam/incident_wavelength", 1e-10, "m"),
        (f"{NXMX}/beam/incident_wavelength", np.full(3, 1.0), "angstrom"),
        (f"{CXI}/source_1/energy", EV * 1.602176634e-19, ""),
        (f"{CXI}/source_1/energy", EV, ""),
        (f"{CXI}/source_1/energy", EV / 1e3, "keV"),
        ("/LCLS/photon_energy_eV", np.full((3, 1), EV / 1e3), "keV"),
    ],
)
def test_photon_energies_are_the_same_in_every_unit(
    tmp_path: Path, name: str, value: object, units: str
) -> None:
    run = opened(tmp_path / "run.h5", energy=(name, value, units))
    np.testing.assert_allclose(run.columns["photon_energy_ev"].values, EV, rtol=1e-6)


@pytest.mark.parametrize(("value", "units"), [(2e-3, ""), (2.0, "mJ"), (2000.0, "uJ")])
def test_pulse_energies_are_the_same_in_every_unit(
    tmp_path: Path, value: float, units: str
) -> None:
    name = f"{CXI}/source_1/pulse_energy"
    run = opened(tmp_path / "run.h5", pulse=(name, np.full(3, value), units))
    np.testing.assert_allclose(run.columns["pulse_energy_mj"].values, 2.0)


def test_corners_in_millimetres_are_where_those_in_metres_are(tmp_path: Path) -> None:
    corners = np.array([[-10.0, -8.0, 120.0], [-10.0, 2.5, 120.0]])
    steps = np.tile([[0.0, 0.1, 0.0], [0.1, 0.0, 0.0]], (2, 1, 1))
    detector = f"{CXI}/detector_1"
    with h5py.File(tmp_path / "run.cxi", "w") as file:
        file["/entry_1/data_1/data"] = np.zeros((3, 2, 100, 200), "i4")
        file[f"{detector}/x_pixel_size"] = 1e-4
        for name, value in (("corner_position", corners), ("basis_vectors", steps)):
            file[f"{detector}/{name}"] = value
            file[f"{detector}/{name}"].attrs["units"] = "mm"
    panels = open_run(tmp_path / "run.cxi").detector.panels
    assert [panel.corner for panel in panels] == [(-100.0, -80.0), (-100.0, 25.0)]
    assert {(panel.fast, panel.slow) for panel in panels} == {((1.0, 0.0), (0.0, 1.0))}


def test_lines_of_a_spectrum_are_not_the_energies_of_events(tmp_path: Path) -> None:
    """There are as many lines as events, by chance."""
    run = opened(
        tmp_path / "run.h5",
        lines=(f"{NXMX}/beam/incident_wavelength", np.linspace(0.5, 2, 3), "angstrom"),
        weights=(f"{NXMX}/beam/incident_wavelength_weights", np.ones(3), ""),
    )
    assert np.isnan(run.columns["photon_energy_ev"].values).all()


@pytest.mark.parametrize(
    ("name", "value", "units", "message"),
    [
        (f"{NXMX}/detector/distance", 0.4, "furlong", "units m, mm, um, nm, angstrom, found 'furl"),
        (f"{NXMX}/detector/distance", 120.0, "", r"expected 0 to 50 m, found 120 m"),
        (f"{NXMX}/detector/x_pixel_size", 75.0, "mm", r"expected 0 to 0\.01 m, found 0\.075 m"),
        (f"{NXMX}/beam/incident_energy", 12.4, "", "expected 100 to 200000 eV, found 12.4 eV"),
        (f"{NXMX}/beam/incident_energy", 9.0, "erg", "expected units eV, keV, J, found 'erg'"),
        (f"{NXMX}/beam/incident_wavelength", 1.0, "m", "expected 100 to 200000 eV"),
        (f"{CXI}/source_1/energy", np.full(3, 9e9), "eV", "expected 100 to 200000 eV"),
        (f"{CXI}/source_1/pulse_energy", np.full(3, 1.0), "eV", "expected units J, mJ, uJ"),
    ],
)
def test_what_cannot_be_meant_is_one_line_with_its_place(
    tmp_path: Path, name: str, value: object, units: str, message: str
) -> None:
    with pytest.raises(SchemaError, match=rf"run\.h5: {name}: .*{message}"):
        opened(tmp_path / "run.h5", number=(name, value, units))


def test_of_a_number_for_each_event_the_usual_one_counts_and_the_lowest_saturation(
    tmp_path: Path,
) -> None:
    run = opened(
        tmp_path / "run.h5",
        distance=(f"{NXMX}/detector/distance", np.array([0.0, 120.0, 121.0]), "mm"),
        full=(f"{NXMX}/detector/saturation_value", np.array([900.0, 0.0, 700.0]), ""),
    )
    assert run.detector.distance_m == pytest.approx(0.1205)
    assert run.detector.saturation_adu == 700


def test_a_whole_run_is_the_same_in_either_units(tmp_path: Path) -> None:
    numbers = {
        "distance": (0.12, "m", 120.0, "mm"),
        "x_pixel_size": (75e-6, "m", 75e3, "nm"),
        "beam_center_x": (10.0, "pixel", 7.5e5, "nm"),
        "beam_center_y": (8.0, "pixel", 0.6, "mm"),
    }
    energies = np.array([9000.0, 9001.0, 9002.0])
    runs = []
    for which in (0, 2):
        given = {
            name: (f"{NXMX}/detector/{name}", values[which], str(values[which + 1]))
            for name, values in numbers.items()
        }
        unit, scale = (("eV", 1.0), ("keV", 1e-3))[which // 2]
        given["energy"] = (f"{NXMX}/beam/incident_energy", energies * scale, unit)
        runs.append(opened(tmp_path / f"run{which}.h5", **given))
    one, other = (run.detector for run in runs)
    assert (one.distance_m, one.pixel_size_m) == (other.distance_m, other.pixel_size_m)
    np.testing.assert_array_equal(one.positions(), other.positions())
    for run in runs:
        np.testing.assert_allclose(run.columns["photon_energy_ev"], energies, rtol=1e-14)


def test_one_event_with_an_odd_energy_stops_nothing(tmp_path: Path) -> None:
    energies = np.array([9000.0, 0.0, 9001.0])
    run = opened(tmp_path / "run.h5", energy=("/LCLS/photon_energy_eV", energies, ""))
    np.testing.assert_array_equal(run.columns["photon_energy_ev"].values, [9000, np.nan, 9001])
