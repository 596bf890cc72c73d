"""Runs as each kind of detector leaves them, from opening to a verified output.

Every row of ``docs/results/layouts.md`` is what one of these tests found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from commands import run as command
from fabio.cbfimage import CbfImage
from fabio.tifimage import TifImage
from numpy.typing import NDArray

from sfxreduce.io.open import open_run
from sfxreduce.run.detector import Panel
from sfxreduce.run.run import Run
from sfxreduce.run.window import Window

TABLE = Path(__file__).resolve().parents[2] / "docs" / "results" / "layouts.md"
SIZE_M, DISTANCE_M, ENERGY_EV = 100e-6, 0.12, 9000.0
N_EVENTS, HITS = 3, (0, 2)
CXI_DATA, DETECTOR = "/entry_1/data_1/data", "/entry_1/instrument_1/detector_1"
MASTER = "entry/instrument/detector"


def tilted(n_panels: int, shape: tuple[int, int], *, columns: int) -> tuple[Panel, ...]:
    """Panels in rows and columns with gaps, each turned by a little more than the one before."""
    n_y, n_x = shape
    panels = []
    for place in range(n_panels):
        row, column = divmod(place, columns)
        angle = 0.002 * place
        fast = (float(np.cos(angle)), float(np.sin(angle)))
        panels.append(
            Panel(
                name=f"p{place}",
                corner=((column - columns / 2) * (n_x + 9.25), (row - 2) * (n_y + 7.5)),
                fast=fast,
                slow=(-fast[1], fast[0]),
            )
        )
    return tuple(panels)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A run on disk, and what was planted in it."""

    path: Path
    frames: NDArray[np.generic]
    panels: tuple[Panel, ...]
    options: Sequence[object] = ()
    missing: tuple[int, ...] = ()


def planted_frames(shape: tuple[int, ...], dtype: str) -> NDArray[np.generic]:
    """Photons of a weak background, with a dozen peaks in the middle of a panel of the hits."""
    rng = np.random.default_rng(sum(shape))
    frames = rng.poisson(4.0, (N_EVENTS, *shape)).astype(dtype)
    flat = frames.reshape(N_EVENTS, -1, *shape[-2:])
    n_y, n_x = shape[-2:]
    for event in HITS:
        for number in range(12):
            y, x = n_y // 4 + 15 * (number // 4), n_x // 4 + 17 * (number % 4)
            flat[event, 0, y : y + 2, x : x + 2] = 400 + number
    return frames


def geometry_text(panels: Sequence[Panel], shape: tuple[int, int], *, slab: bool) -> str:
    """CrystFEL's geometry of panels that lie on an axis of their own, or one below the other."""
    head = [
        f"clen = {DISTANCE_M}", f"res = {1 / SIZE_M}", f"photon_energy = {ENERGY_EV}",
        "adu_per_photon = 1", f"data = {CXI_DATA}", "dim0 = %",
        *(["dim1 = ss", "dim2 = fs"] if slab else ["dim2 = ss", "dim3 = fs"]),
    ]  # fmt: skip
    for place, panel in enumerate(panels):
        top = place * shape[0] if slab else 0
        facts = {
            "min_fs": 0, "max_fs": shape[1] - 1, "min_ss": top, "max_ss": top + shape[0] - 1,
            "corner_x": panel.corner[0], "corner_y": panel.corner[1],
            "fs": f"{panel.fast[0]:+.12f}x {panel.fast[1]:+.12f}y",
            "ss": f"{panel.slow[0]:+.12f}x {panel.slow[1]:+.12f}y",
            **({} if slab else {"dim1": place}),
        }  # fmt: skip
        head += [f"{panel.name}/{name} = {value}" for name, value in facts.items()]
    return "\n".join(head) + "\n"


def cxi(
    folder: Path, shape: tuple[int, ...], *, dtype: str = "i2", columns: int = 1, geom: bool = False
) -> Written:
    """CXI with one panel, or with panels on an axis of their own, placed by itself or a .geom."""
    frames = planted_frames(shape, dtype)
    n_panels = shape[0] if len(shape) == 3 else 1
    panels = tilted(n_panels, (shape[-2], shape[-1]), columns=columns)
    with h5py.File(folder / "run.cxi", "w") as file:
        chunks = (*(1 for _ in shape[:-1]), *shape[-2:])
        file.create_dataset(CXI_DATA, data=frames, chunks=chunks, compression="gzip")
        file[f"{DETECTOR}/distance"] = DISTANCE_M
        file[f"{DETECTOR}/x_pixel_size"] = file[f"{DETECTOR}/y_pixel_size"] = SIZE_M
        file["/LCLS/photon_energy_eV"] = np.full(N_EVENTS, ENERGY_EV)
        if not geom:
            corners = [[*panel.corner, 0.0] for panel in panels]
            steps = [[[*panel.slow, 0.0], [*panel.fast, 0.0]] for panel in panels]
            one = n_panels == 1
            file[f"{DETECTOR}/corner_position"] = np.array(corners[0] if one else corners) * SIZE_M
            file[f"{DETECTOR}/basis_vectors"] = np.array(steps[0] if one else steps) * SIZE_M
            if not one:
                names = [panel.name.encode() for panel in panels]
                file[f"{DETECTOR}/module_identifier"] = np.array(names)
    options: list[object] = []
    if geom:
        text = geometry_text(panels, (shape[-2], shape[-1]), slab=False)
        (folder / "run.geom").write_text(text)
        options = ["--geometry", folder / "run.geom"]
    return Written(path=folder / "run.cxi", frames=frames, panels=panels, options=options)


def cspad_slab(folder: Path) -> Written:
    """CSPAD as psana's slab: 8 rows and 4 columns of sections."""
    frames = planted_frames((1480, 1552), "i2")
    panels, text = [], [
        f"clen = {DISTANCE_M}", f"res = {1 / SIZE_M}", f"photon_energy = {ENERGY_EV}",
        "adu_per_photon = 1", f"data = {CXI_DATA}", "dim0 = %", "dim1 = ss", "dim2 = fs",
    ]  # fmt: skip
    for panel in tilted(32, (185, 388), columns=4):
        row, column = divmod(len(panels), 4)
        panels.append(panel)
        text += [
            f"{panel.name}/min_fs = {column * 388}", f"{panel.name}/max_fs = {column * 388 + 387}",
            f"{panel.name}/min_ss = {row * 185}", f"{panel.name}/max_ss = {row * 185 + 184}",
            f"{panel.name}/corner_x = {panel.corner[0]}",
            f"{panel.name}/corner_y = {panel.corner[1]}",
            f"{panel.name}/fs = {panel.fast[0]:+.12f}x {panel.fast[1]:+.12f}y",
            f"{panel.name}/ss = {panel.slow[0]:+.12f}x {panel.slow[1]:+.12f}y",
        ]  # fmt: skip
    (folder / "run.geom").write_text("\n".join(text) + "\n")
    with h5py.File(folder / "run.cxi", "w") as file:
        file.create_dataset(CXI_DATA, data=frames, chunks=(1, 1480, 1552), compression="gzip")
    options = ["--geometry", folder / "run.geom"]
    return Written(path=folder / "run.cxi", frames=frames, panels=tuple(panels), options=options)


def agipd_with_a_module_off(folder: Path) -> Written:
    """Virtual CXI over one file a module, of which one was never written."""
    shape, off = (16, 512, 128), 7
    frames = planted_frames(shape, "f4")
    panels = tilted(16, (512, 128), columns=4)
    layout = h5py.VirtualLayout(
        (N_EVENTS, *shape),
        "f4",
    )
    for module in range(16):
        name = f"module{module:02}.h5"
        if module != off:
            with h5py.File(folder / name, "w") as file:
                file.create_dataset("image", data=frames[:, module], chunks=(1, 512, 128))
        layout[:, module] = h5py.VirtualSource(name, "image", (N_EVENTS, 512, 128))
    with h5py.File(folder / "run.cxi", "w") as file:
        file.create_virtual_dataset(CXI_DATA, layout, fillvalue=np.nan)
    (folder / "run.geom").write_text(geometry_text(panels, (512, 128), slab=False))
    options = ["--geometry", folder / "run.geom"]
    return Written(
        path=folder / "run.cxi", frames=frames, panels=panels, options=options, missing=(off,)
    )


def master(folder: Path, *, virtual: bool) -> Written:
    """A master over two files: by links, as DECTRIS writes it, or as one virtual dataset."""
    shape = (514, 1030)
    frames = planted_frames(shape, "u4")
    layout = h5py.VirtualLayout((N_EVENTS, *shape), "u4")
    with h5py.File(folder / "run_master.h5", "w") as file:
        for number, rows in enumerate((slice(0, 2), slice(2, 3)), start=1):
            name = f"run_data_{number:06d}.h5"
            with h5py.File(folder / name, "w") as part:
                part.create_dataset("entry/data/data", data=frames[rows], chunks=(1, *shape))
            layout[rows] = h5py.VirtualSource(name, "entry/data/data", frames[rows].shape)
            if not virtual:
                link = h5py.ExternalLink(name, "/entry/data/data")
                file[f"entry/data/data_{number:06d}"] = link
        if virtual:
            file.create_virtual_dataset("entry/data/data", layout)
        file[f"{MASTER}/detector_distance"] = DISTANCE_M * 1e3
        file[f"{MASTER}/detector_distance"].attrs["units"] = "mm"
        file[f"{MASTER}/x_pixel_size"] = file[f"{MASTER}/y_pixel_size"] = SIZE_M
        file[f"{MASTER}/beam_center_x"], file[f"{MASTER}/beam_center_y"] = 512.25, 260.5
        file["entry/instrument/beam/incident_wavelength"] = 12398.419843320026 / ENERGY_EV
    return Written(
        path=folder / "run_master.h5",
        frames=frames,
        panels=(Panel(name="p0", corner=(-512.25, -260.5)),),
    )


def pilatus(folder: Path) -> Written:
    """CBF, one file an event, with DECTRIS' header."""
    frames = planted_frames((619, 487), "i4")
    header = "\r\n".join(
        [
            "# Detector: PILATUS 300K", f"# Pixel_size {SIZE_M} m x {SIZE_M} m",
            "# Count_cutoff 1048575 counts", f"# Wavelength {12398.419843320026 / ENERGY_EV:.9f} A",
            f"# Detector_distance {DISTANCE_M} m", "# Beam_xy (243.75, 310.50) pixels",
        ]
    )  # fmt: skip
    (folder / "images").mkdir()
    for event, frame in enumerate(frames):
        image = CbfImage(data=frame)
        image.header["_array_data.header_convention"] = "PILATUS_1.2"
        image.header["_array_data.header_contents"] = header
        image.write(str(folder / "images" / f"run_{event:04}.cbf"))
    panels = (Panel(name="p0", corner=(-243.75, -310.5)),)
    return Written(path=folder / "images", frames=frames, panels=panels)


def rayonix(folder: Path) -> Written:
    """TIFF, one file an event, which says nothing of where its pixels lie."""
    frames = planted_frames((960, 960), "u2")
    (folder / "images").mkdir()
    for event, frame in enumerate(frames):
        TifImage(data=frame).write(str(folder / "images" / f"run_{event:04}.tif"))
    panels = tilted(1, (960, 960), columns=1)
    (folder / "run.geom").write_text(geometry_text(panels, (960, 960), slab=True))
    options = ["--geometry", folder / "run.geom"]
    return Written(path=folder / "images", frames=frames, panels=panels, options=options)


LAYOUTS: dict[str, Callable[[Path], Written]] = {
    "CXI, one panel, 700 x 650": lambda folder: cxi(folder, (700, 650), dtype="u2"),
    "CXI, CSPAD 32 x 185 x 388": lambda folder: cxi(folder, (32, 185, 388), columns=4),
    "CXI, CSPAD 1480 x 1552, with .geom": cspad_slab,
    "CXI, Jungfrau 8 x 512 x 1024": lambda folder: cxi(
        folder, (8, 512, 1024), dtype="i4", columns=2
    ),
    "CXI, ePix10k 16 x 352 x 384, with .geom": lambda folder: cxi(
        folder, (16, 352, 384), dtype="f4", columns=4, geom=True
    ),
    "virtual CXI, AGIPD 16 x 512 x 128, one module off, with .geom": agipd_with_a_module_off,
    "DECTRIS master and 2 data files, 514 x 1030": lambda folder: master(folder, virtual=False),
    "Jungfraujoch virtual dataset, 514 x 1030": lambda folder: master(folder, virtual=True),
    "Pilatus CBF, 619 x 487": pilatus,
    "Rayonix TIFF, 960 x 960, with .geom": rayonix,
}


def geometry_error_px(run: Run, written: Written) -> float:
    """Largest distance of a panel's corners from where they were planted, in pixels."""
    found = run.detector.placed()
    assert len(found) == len(written.panels)
    apart = [
        np.subtract(getattr(is_at, what), getattr(planted, what))
        for is_at, planted in zip(found, written.panels, strict=True)
        for what in ("corner", "fast", "slow")
    ]
    return float(np.abs(apart).max())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_of_every_layout_goes_the_whole_way(layout: str, tmp_path: Path) -> None:
    written = LAYOUTS[layout](tmp_path)
    geometry = Path(str(written.options[1])) if written.options else None
    run = open_run(written.path, geometry=geometry)
    is_there = np.ones(run.detector.frame_shape, np.bool_)
    is_there[list(written.missing)] = False
    assert run.n_events == N_EVENTS
    error = geometry_error_px(run, written)
    assert error < 1e-6

    frames = written.frames.reshape(N_EVENTS, *run.detector.frame_shape)
    window = Window.centre(run.detector, tile_shape=(200, 200))
    shown = run.source.read(range(N_EVENTS), window).pixels
    wanted = np.stack([window.take(np.where(is_there, one, 0), run.detector) for one in frames])
    np.testing.assert_array_equal(np.nan_to_num(shown), wanted)

    hits, out = tmp_path / "hits.zarr", tmp_path / "hits.cxi"
    told = command(
        "filter", "--in", written.path, "--out", hits, "--cxi", out, "--scorer", "peaks",
        "--min-peaks", "8", "--audit-share", "0", "--adu-per-photon", "1",
        "--photon-energy-ev", ENERGY_EV, "--distance-m", DISTANCE_M, "--pixel-size-m", SIZE_M,
        *written.options, "--serial", "--json",
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout)["kept"] == len(HITS)
    for kept in (open_run(hits), open_run(out, geometry=out.with_suffix(".geom"))):
        pixels = kept.source.read(range(len(HITS))).pixels
        for place, event in enumerate(HITS):
            held = pixels[place].reshape(run.detector.frame_shape)[is_there]
            assert held.tobytes() == frames[event][is_there].tobytes()
        assert geometry_error_px(kept, written) < 1e-6
    verified = command("verify", "--in", hits, "--against", written.path, "--serial", "--json")
    assert verified.exit_code == 0, verified.output
    row = f"| {layout} | {N_EVENTS} events | same | {len(HITS)} of 2 | same | yes | < 1e-6 |"
    assert row in TABLE.read_text().splitlines()
