"""Geometry files: every construct against corners worked out by hand, and runs placed by them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from archived import Call

from sfxreduce.cluster import SerialPool
from sfxreduce.errors import RunNotFound, SchemaError, UsageError
from sfxreduce.io.geometry.crystfel import parse_geometry
from sfxreduce.io.open import open_run
from sfxreduce.io.placed import detector_of_geometry, read_geometry
from sfxreduce.io.writers.geom import format_geometry
from sfxreduce.pipeline.ingest import ingest_run
from sfxreduce.run.detector import Detector, Panel, PixelFlag
from sfxreduce.run.window import Window

Corner = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A geometry file, and its panels' corners: first, end of row, end of column, in mm."""

    text: str
    corners: dict[str, tuple[Corner, Corner, Corner]]
    distance_m: float = math.nan
    energy_ev: float = math.nan


def panel(
    name: str, *, fs: str = "x", ss: str = "y", corner: tuple[float, float] = (-10, -5),
    rows: tuple[int, int] = (0, 9), columns: tuple[int, int] = (0, 19), more: str = "",
) -> str:  # fmt: skip
    return f"""{name}/min_fs = {columns[0]}
{name}/max_fs = {columns[1]}
{name}/min_ss = {rows[0]}
{name}/max_ss = {rows[1]}
{name}/corner_x = {corner[0]}
{name}/corner_y = {corner[1]}
{name}/fs = {fs}
{name}/ss = {ss}
{more}
"""


# A panel of 20 x 10 pixels of 0.1 mm, its first corner at (-1, -0.5) mm, unless a case says so.
USUAL = ((-1.0, -0.5, 100.0), (1.0, -0.5, 100.0), (-1.0, 0.5, 100.0))

CASES = {
    "metres": Case(
        text="clen = 0.1\nres = 10000\nphoton_energy = 9000\nadu_per_photon = 20\n" + panel("p0"),
        corners={"p0": USUAL},
        energy_ev=9000,
    ),
    "units without spaces, upside down": Case(
        text="clen = 150mm\nres=10000\nphoton_energy = 9.5keV\n"
        + panel("a", fs="-x", ss="-1.0y", corner=(10, 5)),
        corners={"a": ((1.0, 0.5, 150.0), (-1.0, 0.5, 150.0), (1.0, -0.5, 150.0))},
        energy_ev=9500,
    ),
    "a path in millimetres by default, and an offset": Case(
        text="clen = /LCLS/detector_1/EncoderValue\ncoffset = 0.5\nres = 10000\n"
        "photon_energy = /LCLS/photon_energy_eV eV\n" + panel("p0"),
        corners={"p0": ((-1.0, -0.5, 620.0), (1.0, -0.5, 620.0), (-1.0, 0.5, 620.0))},
        distance_m=0.12,
    ),
    "a path in metres": Case(
        text="clen = /entry/distance m\nres = 10000\n" + panel("p0"),
        corners={"p0": ((-1.0, -0.5, 250.0), (1.0, -0.5, 250.0), (-1.0, 0.5, 250.0))},
        distance_m=0.25,
    ),
    "shifts": Case(
        text="clen = 100 mm\ndetector_shift_x = 2 mm\ndetector_shift_y = -0.001\nres = 10000\n"
        + panel("p0"),
        corners={"p0": ((1.0, -1.5, 100.0), (3.0, -1.5, 100.0), (1.0, -0.5, 100.0))},
    ),
    "pixels of two sizes": Case(
        text="clen = 0.1 m\nres = 10000\n" + panel("p0")
        + panel("p1", rows=(10, 19), more="p1/res = 5000"),
        corners={"p0": USUAL, "p1": ((-2.0, -1.0, 100.0), (2.0, -1.0, 100.0), (-2.0, 1.0, 100.0))},
    ),
    "defaults that change on the way": Case(
        text="clen = 0.1\nres = 10000\ncoffset = 0.001\n" + panel("p0")
        + "coffset = -0.002 m\nres = 20000\n" + panel("p1", rows=(10, 19)),
        corners={
            "p0": ((-1.0, -0.5, 101.0), (1.0, -0.5, 101.0), (-1.0, 0.5, 101.0)),
            "p1": ((-0.5, -0.25, 98.0), (0.5, -0.25, 98.0), (-0.5, 0.25, 98.0)),
        },
    ),
    "a tilted panel": Case(
        text="clen = 0.1\nres = 10000\n" + panel("p0", fs="+0.8x +0.6z", ss="y"),
        corners={"p0": ((-1.0, -0.5, 100.0), (0.6, -0.5, 101.2), (-1.0, 0.5, 100.0))},
    ),
    "modules of two chips on an axis of their own": Case(
        text="clen = 0.1\nres = 10000\ndata = /entry_1/data_1/data\ndim0 = %\ndim2 = ss\n"
        "dim3 = fs\n"
        + panel("p0a0", rows=(0, 4), more="p0a0/dim1 = 0")
        + panel("p0a1", rows=(5, 9), corner=(-10, 2), more="p0a1/dim1 = 0")
        + panel("p1a0", rows=(0, 4), corner=(20, -5), fs="-y", ss="x", more="p1a0/dim1 = 1")
        + panel("p1a1", rows=(5, 9), corner=(30, -5), fs="-y", ss="x", more="p1a1/dim1 = 1"),
        corners={
            "p0a0": ((-1.0, -0.5, 100.0), (1.0, -0.5, 100.0), (-1.0, 0.0, 100.0)),
            "p0a1": ((-1.0, 0.2, 100.0), (1.0, 0.2, 100.0), (-1.0, 0.7, 100.0)),
            "p1a0": ((2.0, -0.5, 100.0), (2.0, -2.5, 100.0), (2.5, -0.5, 100.0)),
            "p1a1": ((3.0, -0.5, 100.0), (3.0, -2.5, 100.0), (3.5, -0.5, 100.0)),
        },
    ),
    "groups, masks, flags and regions": Case(
        text="""group_left = p0 ; groups may come first
group_all = left,p1
rigid_group_q0 = p0,p1
rigid_group_collection_all = q0
clen = 0.1 m
res = 10000.0
bandwidth = 0.001
adu_per_photon = 21.5
max_adu = 7500
peak_list = /entry_1/result_1
peak_list_type = cxi
mask0_data = /entry_1/data_1/mask
mask0_goodbits = 0x0
mask0_badbits = 0xffff
mask1_data = /bad
mask1_file = bad.h5
saturation_map = /satmap
flag_lessthan = -100
flag_morethan = 1e5
flag_equal = 65535
mask_edge_pixels = 1
badrow_direction = x
"""
        + panel("p0") + panel("p1", rows=(10, 19), corner=(-10, 6), more="p1/no_index = true")
        + "badchip/min_fs = 3\nbadchip/max_fs = 5\nbadchip/min_ss = 12\nbadchip/max_ss = 14\n"
        "badchip/panel = p1\nbad_stop/min_x = -2\nbad_stop/max_x = 2\nbad_stop/min_y = -2\n"
        "bad_stop/max_y = 2\n",
        corners={"p0": USUAL, "p1": ((-1.0, 0.6, 100.0), (1.0, 0.6, 100.0), (-1.0, 1.6, 100.0))},
    ),
    "old masks, an energy by wavelength, another system's lines": Case(
        text=("\t; made elsewhere\nclen = 0.1\nres = 10000\nwavelength = 1.3 A\nadu_per_eV = 0.002"
        " ; a comment\nmask = /mask\nmask_file = m.h5\nmask_good = 0x1\nmask_bad = 0\n"
        + panel("p0").replace("max_fs = 19", "max_fs = 19.0")).replace("\n", "\r\n"),
        corners={"p0": USUAL},
        energy_ev=9537.24603,
    ),
    "turned by thirty degrees": Case(
        text="clen = 0.1\nres = 10000\nwavelength = 1e-10 m\n"
        + panel("p0", fs="+0.8660254x +0.5y", ss="-0.5x +0.8660254y", corner=(0, 0)),
        corners={"p0": ((0.0, 0.0, 100.0), (1.7320508, 1.0, 100.0), (-0.5, 0.8660254, 100.0))},
        energy_ev=12398.41984,
    ),
    "a region without the name of the only panel": Case(
        text="clen = 0.1\nres = 10000\n" + panel("p0") + "bad/min_fs = 0\nbad/max_fs = 1\n"
        "bad/min_ss = 0\nbad/max_ss = 1\n",
        corners={"p0": USUAL},
    ),
    "vectors with spaces and exponents": Case(
        text="clen = 0.1\nres = 1e4\n" + panel("p0", fs="1x - 1.0e-1 y", ss="+ y + .05x"),
        corners={"p0": ((-1.0, -0.5, 100.0), (1.0, -0.7, 100.0), (-0.95, 0.5, 100.0))},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_corners_are_where_they_are_by_hand(name: str) -> None:
    case = CASES[name]
    found = parse_geometry(case.text, file="d.geom")
    assert [p.name for p in found.panels] == list(case.corners)
    corners = found.corners_m(distance_m=case.distance_m) * 1e3
    by_hand = np.array(list(case.corners.values()))
    np.testing.assert_allclose(corners[:, :3], by_hand, atol=1e-3)  # within a micrometre
    opposite = by_hand[:, 1] + by_hand[:, 2] - by_hand[:, 0]
    np.testing.assert_allclose(corners[:, 3], opposite, atol=1e-3)
    if not math.isnan(case.energy_ev):
        assert found.energy is not None
        assert found.energy.value == pytest.approx(case.energy_ev, rel=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_pixels_are_where_the_corners_are(name: str) -> None:
    case = CASES[name]
    found = parse_geometry(case.text, file="d.geom")
    detector = detector_of_geometry(found)
    x, y = (p.reshape(-1, detector.panel_shape[1]) for p in detector.positions())
    for sensor, corners in zip(detector.placed(), case.corners.values(), strict=True):
        first, along, down = (np.array(c[:2]) for c in corners)
        n_y, n_x = sensor.rows[1] - sensor.rows[0], sensor.columns[1] - sensor.columns[0]
        middle = first + (along - first) / (2 * n_x) + (down - first) / (2 * n_y)
        seen = np.array(
            [x[sensor.rows[0], sensor.columns[0]], y[sensor.rows[0], sensor.columns[0]]]
        )
        np.testing.assert_allclose(seen * detector.pixel_size_m * 1e3, middle, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_the_geometry_of_hits_has_the_coordinates_of_the_users(name: str) -> None:
    case = CASES[name]
    found = parse_geometry(case.text, file="d.geom")
    offset = float(np.mean([p.offset_m for p in found.panels]))
    detector = replace(
        detector_of_geometry(found), crystfel=case.text, distance_m=case.distance_m + offset,
        adu_per_photon=20.0, saturation_adu=9000.0,
    )  # fmt: skip
    text = format_geometry(detector)
    ours = parse_geometry(text, file="hits.geom")
    # Nothing is left to a data file but what the hits have.
    assert ours.distance is not None
    assert not ours.distance.path
    assert ours.energy is not None
    assert ours.energy.path in ("", "/LCLS/photon_energy_eV")
    np.testing.assert_allclose(
        ours.corners_m(), found.corners_m(distance_m=case.distance_m), atol=1e-12
    )
    # Panels lie one below the other; bad pixels are those that were.
    assert {p.dims for p in ours.panels} == {("%", "ss", "fs")}
    assert {p.data for p in ours.panels} == {"/entry_1/data_1/data"}
    bits = [(m.data, m.file, m.good_bits, m.bad_bits) for p in ours.panels for m in p.masks]
    assert set(bits) == {("/entry_1/data_1/mask", "", 0, 0xFFFFFFFF)}
    again = detector_of_geometry(ours)
    np.testing.assert_array_equal(again.mask.ravel(), detector.mask.ravel())
    assert all(math.isfinite(p.gain[0]) and math.isfinite(p.max_adu) for p in ours.panels)
    # A second time changes nothing: it is what a run of hits that is filtered again has.
    assert parse_geometry(
        format_geometry(replace(detector, crystfel=text)), file="again.geom"
    ).panels == ours.panels  # fmt: skip


P = panel("p0")
WRONG: list[tuple[str, str]] = [
    ("clen = 0.1\nres = 1000\nq0/min_fs == 3\n", r"d\.geom:3:12: expected a whole number .*'= 3'"),
    ("clen 0.1\n", r"d\.geom:1:1: expected 'name = value' or a comment, found 'clen 0.1'"),
    ("  pixel_size = 3\n", r"d\.geom:1:3: expected a name of CrystFEL's .* found 'pixel_size'"),
    ("p0/clen = 0.1\n", r"d\.geom:1:1: expected a name .*'clen'; it is said once"),
    ("clen = 15 cm\n", r"d\.geom:1:11: expected the unit m or mm, found 'cm'"),
    ("clen = 0.1 mrad\n", r"d\.geom:1:12: expected the unit m or mm"),
    ("photon_energy = 9 kev\n", r"d\.geom:1:19: expected the unit eV or keV, found 'kev'"),
    ("wavelength = 1.3\n", r"d\.geom:1:17: expected the unit m or A"),
    ("coffset = 2 mm\n", r"d\.geom:1:13: expected a number of metres, found 'mm'"),
    ("p0/fs = 1.0x 0.5y\n", r"d\.geom:1:14: expected a sum of numbers with x, y or z"),
    ("p0/fs = 1.0a\n", r"d\.geom:1:9: expected a sum"),
    ("p0/fs =\n", r"d\.geom:1:8: expected a sum"),
    ("mask0_badbits = 0xfffffffff\n", r"d\.geom:1:17: expected a mask of 32 bits"),
    ("mask8_data = /m\n", r"d\.geom:1:1: expected a name .*'mask8_data'"),
    ("mask0_bits = 3\n", r"d\.geom:1:1: expected a name .*'mask0_bits'"),
    ("dim1 = slow\n", r"d\.geom:1:8: expected fs, ss, % or a number, found 'slow'"),
    ("data = entry/data\n", r"d\.geom:1:8: expected the path of a dataset"),
    ("res = nan\n", r"d\.geom:1:7: expected a number, found 'nan'"),
    ("clen = 0.1\nclen = 0.2\n", r"d\.geom:2:1: expected 'clen' once"),
    ("wavelength = 1 A\nphoton_energy = 9000\n", r"d\.geom:2:1: expected 'photon_energy' once"),
    ("electron_voltage = 300 kV\n", r"d\.geom:1:1: expected a name .*'electron_voltage'"),
    ("group_a = p7\n" + "res = 1\n" + P, r"d\.geom:1:11: expected panels, or groups .*'p7'"),
    ("res = 1\n" + P + "max_adu = 3\n", r"d\.geom:11:1: 'max_adu' stands for panels .* further"),
    (P, r"d\.geom:1:1: panel 'p0': expected res, found none"),
    ("res = 1\ndim0 = fs\ndim1 = ss\n" + P, r"d\.geom:4:1: panel 'p0': .*dim0 = fs, dim1 = ss"),
    ("res = 1\ndim0 = %\ndim2 = ss\ndim3=fs\ndim1=%\ndim5=1\n" + P, r"expected every axis from"),
    ("res = 1\nmask0_badbits = 1\n" + P, r"d\.geom:3:1: panel 'p0': expected mask0_data"),
    ("res = 1\n" + P + "badx/min_x = 1\nbadx/max_fs = 3\n", r"d\.geom:11:1: bad region 'badx'"),
    ("res = 1\n" + P + "badx/min_fs = 1\nbadx/max_fs = 30\nbadx/min_ss=1\nbadx/max_ss=2\n",
     r"bad region 'badx': expected pixels of panel 'p0'"),
    ("; nothing\n", r"d\.geom: expected panels, found none"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_not_understood_is_named_with_line_and_column(text: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        parse_geometry(text, file="d.geom")


def write_run(
    path: Path, shape: tuple[int, ...], *, n: int = 3, more: dict[str, Any] | None = None
) -> np.ndarray:
    frames = np.arange(n * math.prod(shape)).reshape(n, *shape).astype("i4") % 997
    with h5py.File(path, "w") as file:
        file["/entry_1/data_1/data"] = frames
        for name, value in (more or {}).items():
            file[name] = value
    return frames


def placed_run(tmp_path: Path, text: str, shape: tuple[int, ...], **given: Any) -> Any:
    write_run(tmp_path / "run.cxi", shape, **given)
    (tmp_path / "d.geom").write_text(text)
    return open_run(tmp_path / "run.cxi", geometry=tmp_path / "d.geom")


@pytest.mark.parametrize("shape", [(2, 10, 20), (20, 20)])
def test_modules_are_found_whether_frames_stack_them_or_not(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Frames (module, y, x), and slabs of them; the geometry speaks of an axis of modules."""
    text = CASES["modules of two chips on an axis of their own"].text
    run = placed_run(tmp_path, text, shape)
    assert run.detector.frame_shape == shape
    assert not run.detector.is_assumed
    places = [(s.name, s.rows, s.columns) for s in run.detector.placed()]
    assert places == [
        ("p0a0", (0, 5), (0, 20)), ("p0a1", (5, 10), (0, 20)),
        ("p1a0", (10, 15), (0, 20)), ("p1a1", (15, 20), (0, 20)),
    ]  # fmt: skip


def test_a_window_shows_the_pixels_that_the_geometry_puts_there(tmp_path: Path) -> None:
    """Of frames in one chunk and of a store in tiles; the source takes the panels as stacked."""
    text = CASES["modules of two chips on an axis of their own"].text
    run = placed_run(tmp_path, text, (2, 10, 20))
    ingest_run(open_run(tmp_path / "run.cxi"), out=tmp_path / "run.zarr", pool=SerialPool())
    window = Window.centre(run.detector, tile_shape=(30, 28))
    frames = run.source.read([1, 2]).pixels
    expected = np.stack([window.take(frame, run.detector) for frame in frames])
    assert np.count_nonzero(expected) > 300
    for name in ("run.cxi", "run.zarr"):
        source = open_run(tmp_path / name, geometry=tmp_path / "d.geom").source
        np.testing.assert_array_equal(source.read([1, 2], window).pixels, expected)


def test_the_geometry_wins_and_what_it_leaves_open_stays(tmp_path: Path) -> None:
    text = "clen = /LCLS/z mm\nres = 10000\ncoffset = 0.01\nadu_per_eV = 0.002\n" + panel("p0")
    text = "photon_energy = /LCLS/e keV\nmax_adu = 5000\n" + text
    detector = "/entry_1/instrument_1/detector_1"
    run = placed_run(
        tmp_path, text, (10, 20),
        more={
            f"{detector}/distance": 0.9, f"{detector}/x_pixel_size": 5e-5,
            f"{detector}/saturation_value": 99.0, f"{detector}/description": "camera",
            "/LCLS/z": [110.0, 120.0, 130.0], "/LCLS/e": np.array([9.0, 9.5, np.nan]),
            "/LCLS/photon_energy_eV": [1e3, 1e3, 1e3], f"{detector}/mask": np.eye(10, 20),
        },
    )  # fmt: skip
    found = run.detector
    assert found.name == "camera"
    assert found.pixel_size_m == pytest.approx(1e-4)
    assert found.distance_m == pytest.approx(0.13)
    assert found.saturation_adu == 5000
    np.testing.assert_array_equal(run.columns["photon_energy_ev"].values, [9000, 9500, np.nan])
    assert found.adu_per_photon == pytest.approx(0.002 * 9250)
    assert int((found.mask != 0).sum()) == 10
    assert Path(tmp_path / "d.geom") in run.inputs


def test_bad_pixels_of_a_geometry_are_masked(tmp_path: Path) -> None:
    text = """clen = 0.1
res = 10000
mask0_data = /shadow
mask0_goodbits = 0x1
mask1_data = /dead
mask1_file = bad.h5
mask1_badbits = 0x6
flag_morethan = 990
mask_edge_pixels = 1
""" + panel("p0") + panel("p1", rows=(12, 19), corner=(-10, 8)) + """p1/no_index = 1
bad_stop/min_x = -1
bad_stop/max_x = 1
bad_stop/min_y = -1
bad_stop/max_y = 1
bad_part/min_fs = 2
bad_part/max_fs = 3
bad_part/min_ss = 4
bad_part/max_ss = 4
bad_part/panel = p0
"""  # fmt: skip
    shadow, dead = np.ones((20, 20), "u1"), np.zeros((20, 20), "u2")
    shadow[2, 5], dead[3, 6], dead[3, 7] = 2, 4, 1
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        file["/dead"] = dead
    frames = np.zeros((4, 20, 20), "i4")
    frames[:, 5, 5], frames[:3, 5, 6] = 995, 995
    text = text.replace("bad.h5", str(tmp_path / "bad.h5"))
    placed_run(tmp_path, text, (20, 20), more={"/shadow": shadow})
    with h5py.File(tmp_path / "run.cxi", "r+") as file:
        del file["/entry_1/data_1/data"]
        file["/entry_1/data_1/data"] = frames
    mask = open_run(tmp_path / "run.cxi", geometry=tmp_path / "d.geom").detector.mask
    good = np.zeros((20, 20), bool)
    good[1:9, 1:19] = True  # edges of p0; rows 10 and 11 are of no panel, p1 is left out
    good[5, 10] = False  # the corners of four pixels are within the stop, strictly of one
    good[4, 2:4] = good[2, 5] = good[3, 6] = good[5, 5] = False
    np.testing.assert_array_equal(mask == 0, good)
    assert (mask[10:12] == PixelFlag.GAP).all()


@pytest.mark.parametrize("shape", [(10, 21), (12, 20), (2, 10, 20), (3, 10, 20)])
def test_a_geometry_of_another_detector_is_refused(
    tmp_path: Path, call: Call, shape: tuple[int, ...]
) -> None:
    write_run(tmp_path / "run.cxi", shape)
    (tmp_path / "d.geom").write_text(CASES["metres"].text)
    words = ("filter", "--in", tmp_path / "run.cxi", "--geometry", tmp_path / "d.geom", "--out",
             tmp_path / "hits.zarr", "--scorer", "peaks", "--serial")  # fmt: skip
    status, printed, errors = call(*words)
    assert status == 2, errors
    expected = " x ".join(map(str, shape))
    assert f"make frames of 10 x 20 pixels, those of {tmp_path}/run.cxi are {expected}" in errors
    assert printed["exit_status"] == 2


def test_what_cannot_be_a_geometry_is_one_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run.cxi", (10, 20))
    with pytest.raises(RunNotFound, match=r"gone\.geom: cannot be read .*--geometry"):
        open_run(tmp_path / "run.cxi", geometry=tmp_path / "gone.geom")
    (tmp_path / "b.geom").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SchemaError, match=r"b\.geom: expected a CrystFEL geometry file"):
        open_run(tmp_path / "run.cxi", geometry=tmp_path / "b.geom")
    (tmp_path / "c.geom").write_text("res = 1\n" + panel("p0") + panel("p1"))
    with pytest.raises(SchemaError, match="panel 'p1' has pixels of another panel"):
        open_run(tmp_path / "run.cxi", geometry=tmp_path / "c.geom")
    (tmp_path / "d.geom").write_text(CASES["metres"].text)
    with pytest.raises(UsageError, match="--geometry does not go with --untrusted"):
        open_run(tmp_path / "run.cxi", geometry=tmp_path / "d.geom", untrusted=True)


def test_a_nexus_master_places_panels_too(tmp_path: Path) -> None:
    corners = np.array([[-1e-3, -1e-3, 0.2], [-1e-3, 2e-4, 0.2]])
    detector = "/entry_1/instrument_1/detector_1"
    with h5py.File(tmp_path / "master.nxs", "w") as file:
        file[f"{detector}/corner_position"] = corners
        file[f"{detector}/x_pixel_size"] = 1e-4
        file[f"{detector}/distance"] = 0.2
    write_run(tmp_path / "run.cxi", (2, 10, 20))
    assert open_run(tmp_path / "run.cxi").detector.is_assumed
    run = open_run(tmp_path / "run.cxi", geometry=tmp_path / "master.nxs")
    assert [s.corner for s in run.detector.placed()] == [(-10.0, -10.0), (-10.0, 2.0)]
    assert (run.detector.distance_m, run.detector.is_assumed) == (0.2, False)
    with h5py.File(tmp_path / "empty.nxs", "w"):
        pass
    with pytest.raises(SchemaError, match=r"empty\.nxs: expected the places of 2 panels"):
        open_run(tmp_path / "run.cxi", geometry=tmp_path / "empty.nxs")


@pytest.mark.parametrize(
    ("detector", "assumed"),
    [
        (Detector.unplaced("d", (4, 10, 20)), True),
        (Detector.centred("d", (4096, 1024)), True),
        (Detector.centred("d", (1480, 1552)), True),
        (Detector.centred("d", (1750, 1750)), False),
        (Detector.unplaced("d", (1, 10, 20)), False),
        (Detector(name="d", panel_shape=(5, 5), stacked=True, panels=(
            Panel(name="a", corner=(0, 0)), Panel(name="b", corner=(0, 6)))), False),
    ],
)  # fmt: skip
def test_panels_are_assumed_where_nothing_places_them(detector: Detector, assumed: bool) -> None:
    assert detector.is_assumed is assumed


def test_without_a_geometry_nothing_is_promised_and_with_one_the_panels_are_given(
    tmp_path: Path, call: Call
) -> None:
    write_run(tmp_path / "run.cxi", (2, 10, 20))
    (tmp_path / "d.geom").write_text(CASES["modules of two chips on an axis of their own"].text)
    words = ("filter", "--in", tmp_path / "run.cxi", "--dry-run", "--serial", "--out")
    status, plan, errors = call(*words, tmp_path / "a.zarr")
    assert (status, plan["geometry"]) == (0, "assumed")
    assert plan["assurance"]["state"] == "withheld"
    assert any("--geometry FILE" in reason for reason in plan["assurance"]["reasons"])
    assert "nothing says where the panels of its frames of 2 x 10 x 20 pixels lie" in errors
    status, plan, errors = call(*words, tmp_path / "b.zarr", "--geometry", tmp_path / "d.geom")
    assert (status, plan["geometry"]) == (0, "given")
    assert not any("--geometry" in reason for reason in plan["assurance"]["reasons"])
    assert "nothing says where" not in errors


def test_a_store_keeps_the_geometry_it_was_given(tmp_path: Path, call: Call) -> None:
    """From ingest to the hits, where the user's file comes out again; it may not be overwritten."""
    text = CASES["modules of two chips on an axis of their own"].text
    text = "photon_energy = 9000\nadu_per_photon = 20\n" + text
    write_run(tmp_path / "run.cxi", (2, 10, 20))
    given = tmp_path / "hits.geom"
    given.write_text(text)
    status, _, errors = call("ingest", "--in", tmp_path / "run.cxi", "--out", tmp_path / "r.zarr",
                             "--geometry", given, "--serial")  # fmt: skip
    assert status == 0, errors
    stored = open_run(tmp_path / "r.zarr").detector
    assert stored.crystfel == text
    assert stored.sensors == detector_of_geometry(read_geometry(given)).sensors
    words = ("filter", "--in", tmp_path / "r.zarr", "--scorer", "peaks", "--serial", "--out")
    cxi = ("--cxi", tmp_path / "hits.cxi", "--geometry", given, "--overwrite")
    status, _, errors = call(*words, tmp_path / "a.zarr", *cxi)
    assert (status, given.read_text()) == (2, text), errors
    out = tmp_path / "out"
    out.mkdir()
    status, report, errors = call(*words, out / "hits.zarr", "--cxi", out / "hits.cxi")
    assert (status, report["geometry"]) == (0, "given"), errors
    hits = read_geometry(out / "hits.geom")
    np.testing.assert_array_equal(hits.corners_m(), parse_geometry(text, file="").corners_m())


def test_tiles_of_a_placed_store_are_copied_as_they_are(tmp_path: Path, call: Call) -> None:
    text = CASES["modules of two chips on an axis of their own"].text
    write_run(tmp_path / "run.cxi", (2, 10, 20))
    (tmp_path / "d.geom").write_text(text)
    stored = tmp_path / "r.zarr"
    assert call("ingest", "--in", tmp_path / "run.cxi", "--out", stored, "--serial")[0] == 0
    words = ("filter", "--in", stored, "--scorer", "peaks", "--serial", "--dry-run", "--out")
    _, plan, errors = call(*words, tmp_path / "h.zarr", "--geometry", tmp_path / "d.geom")
    assert plan["copies_tiles"] is True, errors


@pytest.mark.parametrize("with_run", [True, False])
def test_show_draws_every_panel(
    tmp_path: Path, call: Call, with_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    geometry = tmp_path / "d.geom"
    text = "photon_energy = 9000\n" + CASES["modules of two chips on an axis of their own"].text
    geometry.write_text(text.replace("clen = 0.1", "clen = 0.002"))
    write_run(tmp_path / "run.cxi", (2, 10, 20))
    more = ("--run", tmp_path / "run.cxi") if with_run else ()
    status, facts, errors = call("geometry", "show", geometry, *more, "--out", tmp_path / "d.svg")
    assert status == 0, errors
    assert (facts["panels"], facts["frame_shape"], facts["photon_energy_ev"]) == (
        4,
        [2, 10, 20],
        9e3,
    )
    drawn = (tmp_path / "d.svg").read_text()
    assert drawn.count("<polygon") == 4
    assert all(f"<title>p{m}a{a}</title>" in drawn for m in (0, 1) for a in (0, 1))
    assert all(f'class="{kind}"' in drawn for kind in ("beam", "window", "ring"))


READS: list[Callable[[Path], tuple[Any, ...]]] = [
    lambda run: ("label", "--in", run, "--out", run.with_suffix(".csv")),
    lambda run: ("ingest", "--in", run, "--out", run.with_suffix(".zarr")),
]


@pytest.mark.parametrize("words", READS)
def test_every_command_that_reads_pixels_takes_a_geometry(
    tmp_path: Path, call: Call, words: Callable[[Path], tuple[Any, ...]]
) -> None:
    write_run(tmp_path / "run.cxi", (10, 20))
    (tmp_path / "d.geom").write_text("res = 1\nclem = 3\n" + P)
    line = (*words(tmp_path / "run.cxi"), "--geometry", tmp_path / "d.geom", "--serial")
    status, _, errors = call(*line)
    assert (status, f"{tmp_path}/d.geom:2:1: expected a name" in errors) == (1, True)
