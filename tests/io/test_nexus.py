"""Groups of NeXus files are found by their class, and frames of two detectors are not mixed up."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from sfxreduce.errors import SchemaError
from sfxreduce.io.open import open_run

FRAMES = np.arange(3 * 64 * 80).reshape(3, 64, 80).astype("i4")


def group(file: h5py.File, path: str, nx_class: str) -> h5py.Group:
    made = file.require_group(path)
    made.attrs["NX_class"] = nx_class
    return made


def detector(file: h5py.File, path: str, *, distance: float, bad: int) -> h5py.Group:
    made = group(file, path, "NXdetector")
    made["distance"], made["x_pixel_size"] = distance, 75e-6
    made["pixel_mask"] = np.zeros(FRAMES.shape[1:], "u4")
    made["pixel_mask"][0, :bad] = 1
    return made


class TestNamesOfGroups:
    @pytest.mark.parametrize("data", ["/scan/frames", "/scan/instr/eiger"])
    @pytest.mark.parametrize("beam", ["/scan/instr/light", "/scan/crystal/light"])
    def test_every_group_may_have_any_name(self, tmp_path: Path, data: str, beam: str) -> None:
        """A detector of another name than 'detector' had neither distance nor mask."""
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            group(file, "/scan", "NXentry")
            group(file, "/scan/instr", "NXinstrument")
            group(file, "/scan/crystal", "NXsample")
            made = detector(file, "/scan/instr/eiger", distance=0.2, bad=3)
            made["saturation_value"] = 500
            group(file, "/scan/instr/diode", "NXdetector")["data"] = np.zeros(3)
            group(file, beam, "NXbeam")["incident_wavelength"] = 1.0
            if data == "/scan/frames":
                group(file, data, "NXdata")["image"] = FRAMES
                file[data].attrs["signal"] = b"image"
                made["data"] = file[f"{data}/image"]
            else:
                made["data"] = FRAMES
        run = open_run(tmp_path / "run.nxs")
        np.testing.assert_array_equal(run.source.read(range(3)).pixels, FRAMES)
        assert run.detector.distance_m == 0.2
        assert run.detector.saturation_adu == 500
        assert np.count_nonzero(run.detector.mask) == 3
        np.testing.assert_allclose(run.columns["photon_energy_ev"], 12398.42, rtol=1e-6)

    def test_the_settings_of_older_masters_count_where_nothing_else_says_it(
        self, tmp_path: Path
    ) -> None:
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file["/entry/data/data"] = FRAMES
            settings = file.create_group("/entry/instrument/detector/detectorSpecific")
            settings["photon_energy"] = 9000.0
            settings["pixel_mask"] = np.eye(64, 80).astype("u4")
        run = open_run(tmp_path / "run.h5")
        assert np.count_nonzero(run.detector.mask) == 64
        assert set(run.columns["photon_energy_ev"].values) == {9000.0}


class TestTwoDetectors:
    @pytest.mark.parametrize("apart", ["/entry/back", "/second/data"])
    def test_frames_of_two_have_to_be_named_and_have_their_own_geometry(
        self, tmp_path: Path, apart: str
    ) -> None:
        other = apart.split("/")[1]
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            for entry in ("entry", other):
                group(file, f"/{entry}", "NXentry")
                group(file, f"/{entry}/instrument", "NXinstrument")
            detector(file, "/entry/instrument/front", distance=2.0, bad=1)["data"] = FRAMES
            path = f"/{other}/instrument/back"
            detector(file, path, distance=0.1, bad=2)["data"] = FRAMES + 1
            group(file, apart, "NXdata")["data"] = file[f"{path}/data"]
        with pytest.raises(SchemaError, match=r"found /entry/.*front/data .* name one of them"):
            open_run(tmp_path / "run.nxs", data_path="")
        for named in (f"{path}/data", f"{apart}/data"):
            run = open_run(tmp_path / "run.nxs", data_path=named)
            assert (run.detector.distance_m, run.source.read([0]).pixels[0, 0, 0]) == (0.1, 1)
            assert np.count_nonzero(run.detector.mask) == 2

    def test_two_of_which_either_may_be_meant_are_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            file["/entry/data/data"] = FRAMES
            group(file, "/entry", "NXentry")
            group(file, "/entry/instrument", "NXinstrument")
            detector(file, "/entry/instrument/front", distance=2.0, bad=1)
            detector(file, "/entry/instrument/back", distance=0.1, bad=1)
        with pytest.raises(SchemaError, match=r"expected one detector, found .*back and .*front"):
            open_run(tmp_path / "run.nxs")

    def test_entries_of_cxi_and_nexus_lend_each_other_nothing(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.h5", "w") as file:
            file["/entry/data/data"], file["/entry_1/data_1/data"] = FRAMES, FRAMES + 1
            file["/entry/instrument/detector/distance"] = 0.3
            file["/entry/instrument/beam/incident_energy"] = 7000.0
            file["/entry_1/instrument_1/detector_1/x_pixel_size"] = 1e-4
        cxi = open_run(tmp_path / "run.h5", data_path="/entry_1/data_1/data")
        nexus = open_run(tmp_path / "run.h5", data_path="/entry/data/data")
        assert (nexus.detector.distance_m, cxi.detector.pixel_size_m) == (0.3, 1e-4)
        assert np.isnan([cxi.detector.distance_m, nexus.detector.pixel_size_m]).all()
        assert np.isnan(cxi.columns["photon_energy_ev"].values).all()
        assert set(nexus.columns["photon_energy_ev"].values) == {7000.0}

    def test_the_energies_of_a_second_entry_are_its_own(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.cxi", "w") as file:
            for entry, energy in (("entry_1", 8000.0), ("entry_2", 9000.0)):
                file[f"/{entry}/data_1/data"] = FRAMES
                file[f"/{entry}/instrument_1/source_1/energy"] = energy
        run = open_run(tmp_path / "run.cxi", data_path="/entry_2/data_1/data")
        assert set(run.columns["photon_energy_ev"].values) == {9000.0}

    def test_a_view_of_the_same_frames_is_no_second_detector(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            group(file, "/entry", "NXentry")
            group(file, "/entry/instrument", "NXinstrument")
            group(file, "/entry/data", "NXdata")
            made = detector(file, "/entry/instrument/eiger", distance=0.2, bad=1)
            made["data"] = FRAMES
            layout = h5py.VirtualLayout(FRAMES.shape, FRAMES.dtype)
            layout[:] = h5py.VirtualSource(made["data"])
            file.create_virtual_dataset("/entry/data/data", layout)
        assert open_run(tmp_path / "run.nxs").detector.distance_m == 0.2

    def test_profiles_beside_the_frames_are_no_second_detector(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            group(file, "/entry", "NXentry")
            for name, values in (("data", FRAMES), ("azint", np.zeros((3, 16, 500)))):
                group(file, f"/entry/{name}", "NXdata")["data"] = values
        assert open_run(tmp_path / "run.nxs").n_events == 3
