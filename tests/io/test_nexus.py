"""Groups of NeXus files are found by their class, and frames of two detectors are not mixed up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from sfxreduce.errors import SchemaError
from sfxreduce.io.open import open_run
from sfxreduce.run.detector import PixelFlag

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


DEGREES = np.deg2rad(30.0)


def add_module(
    detector: h5py.Group,
    name: str,
    *,
    origin: list[int],
    size: list[int],
    corner_mm: tuple[float, float],
    turned: bool = False,
    depends_on: str = "transformations/stage",
) -> None:
    """Write a module with pixels of 0.1 mm; a turned one hangs on a rotation by 30 degrees."""
    made = group(detector.file, f"{detector.name}/{name}", "NXdetector_module")
    made["data_origin"], made["data_size"] = origin, size
    made["module_offset"] = 1.0
    offset = {
        "vector": [0.0, 0.0, 1.0], "transformation_type": "translation", "units": "mm",
        "offset": [*corner_mm, -1.0], "offset_units": "mm",
        "depends_on": f"{detector.name}/transformations/tilt" if turned else
        f"{detector.name}/{depends_on}",
    }  # fmt: skip
    for key, value in offset.items():
        made["module_offset"].attrs[key] = value
    for key, vector in (("fast", [2.0, 0.0, 0.0]), ("slow", [0.0, -1.0, 0.0])):
        made[f"{key}_pixel_direction"] = 0.1
        for attribute, value in (
            ("vector", vector), ("units", "mm"), ("depends_on", "module_offset"),
        ):  # fmt: skip
            made[f"{key}_pixel_direction"].attrs[attribute] = value


def add_motions(detector: h5py.Group) -> None:
    motions = group(detector.file, f"{detector.name}/transformations", "NXtransformations")
    for name, value, units, kind, vector, depends_on in (
        ("tilt", 30.0, "deg", "rotation", [0.0, 0.0, 1.0], "stage"),
        ("stage", 150.0, "mm", "translation", [0.0, 0.0, 1.0], "."),
    ):
        motions[name] = [value]
        for key, text in (
            ("units", units), ("transformation_type", kind), ("vector", vector),
            ("depends_on", depends_on),
        ):  # fmt: skip
            motions[name].attrs[key] = text


class TestModules:
    def start(self, file: h5py.File, frames: np.ndarray) -> h5py.Group:
        file["/entry/data/data"] = frames
        group(file, "/entry", "NXentry")
        group(file, "/entry/instrument", "NXinstrument")
        made = group(file, "/entry/instrument/jungfrau", "NXdetector")
        add_motions(made)
        return made

    @pytest.mark.parametrize("stacked", [False, True])
    def test_panels_lie_where_their_chains_of_motions_put_them(
        self, tmp_path: Path, stacked: bool
    ) -> None:
        frames = np.ones((3, 2, 64, 80), "i4")
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            made = self.start(file, frames if stacked else frames.reshape(3, 128, 80))
            for place, corner in enumerate([(-8.0, 7.0), (1.0, 2.0)]):
                origin = [place, 0, 0] if stacked else [64 * place, 0]
                size = [1, 64, 80] if stacked else [64, 80]
                add_module(
                    made, f"m{place}", origin=origin, size=size, corner_mm=corner,
                    turned=place == 1,
                )  # fmt: skip
        detector = open_run(tmp_path / "run.nxs").detector
        assert detector.geometry == "given"
        assert detector.pixel_size_m == pytest.approx(1e-4)
        assert len(detector.sensors) == (0 if stacked else 2)
        x, y = (axis.reshape(2, 64, 80) for axis in detector.positions())
        i, j = np.meshgrid(np.arange(80) + 0.5, np.arange(64) + 0.5)
        np.testing.assert_allclose(x[0], -80 + i, atol=1e-6)
        np.testing.assert_allclose(y[0], 70 - j, atol=1e-6)
        flat = (10 + i) + 1j * (20 - j)
        turned = flat * np.exp(1j * DEGREES)
        np.testing.assert_allclose(x[1], turned.real, atol=1e-6)
        np.testing.assert_allclose(y[1], turned.imag, atol=1e-6)

    def test_pixels_of_no_module_are_gaps(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            made = self.start(file, FRAMES)
            for name, row in (("a", 0), ("b", 34)):
                add_module(made, name, origin=[row, 0], size=[30, 80], corner_mm=(-4, row / 10))
        mask = open_run(tmp_path / "run.nxs").detector.mask
        assert set(np.unique(mask[30:34])) == {PixelFlag.GAP}
        assert not mask[:30].any()
        assert not mask[34:].any()

    @pytest.mark.parametrize(
        ("corner", "beam", "expected"),
        [
            ((-4.0, 3.2), None, (-40.0, 32.0)),
            ((-4.0, 3.2), (40.0, 32.4), (-40.0, 32.0)),
            ((0.0, 0.0), (40.0, 32.0), (-40.0, -32.0)),
            ((-4.0, 3.2), (10.0, 12.0), (-10.0, -12.0)),
        ],
    )
    def test_a_lone_module_counts_where_it_agrees_with_the_beam(
        self,
        tmp_path: Path,
        corner: tuple[float, float],
        beam: tuple[float, float] | None,
        expected: tuple[float, float],
    ) -> None:
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            made = self.start(file, FRAMES)
            add_module(made, "only", origin=[0, 0], size=[64, 80], corner_mm=corner)
            if beam is not None:
                made["beam_center_x"], made["beam_center_y"] = beam
        [panel] = open_run(tmp_path / "run.nxs").detector.panels
        assert panel.corner == pytest.approx(expected)

    def test_a_master_can_be_the_geometry_of_another_run(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "d.nxs", "w") as file:
            made = self.start(file, np.ones((1, 2, 64, 80), "i4"))
            for place in (0, 1):
                add_module(
                    made, f"m{place}", origin=[place, 0, 0], size=[1, 64, 80],
                    corner_mm=(-4.0, 7.0 * place),
                )  # fmt: skip
        with h5py.File(tmp_path / "run.cxi", "w") as file:
            file["/entry_1/data_1/data"] = np.ones((3, 2, 64, 80), "i4")
        assert open_run(tmp_path / "run.cxi").detector.geometry == "assumed"
        run = open_run(tmp_path / "run.cxi", geometry=tmp_path / "d.nxs")
        assert run.detector.geometry == "given"
        assert [s.corner for s in run.detector.placed()] == [(-40.0, 0.0), (-40.0, 70.0)]

    @pytest.mark.parametrize(
        ("second", "message"),
        [
            ({"origin": [10, 0], "size": [30, 80]}, "found b with pixels of another one"),
            ({"origin": [40, 0], "size": [30, 80]}, r"found \[40, 0\] to \[70, 80\]"),
            (
                {"origin": [40, 0], "size": [9, 80], "depends_on": "b/module_offset"},
                "expected a chain of motions with an end",
            ),
        ],
    )
    def test_what_cannot_be_meant_is_one_line(
        self, tmp_path: Path, second: dict[str, Any], message: str
    ) -> None:
        with h5py.File(tmp_path / "run.nxs", "w") as file:
            made = self.start(file, FRAMES)
            add_module(made, "a", origin=[0, 0], size=[30, 80], corner_mm=(-4, 1))
            add_module(made, "b", corner_mm=(-4, 5), **second)
        with pytest.raises(SchemaError, match=message):
            open_run(tmp_path / "run.nxs")
