"""What CrystFEL needs beside the frames: a geometry file and a list of events.

The geometry format is described in CrystFEL's manual page ``crystfel_geometry`` [1]_.

References
----------
.. [1] T. A. White et al., J. Appl. Cryst. 45 (2012) 335. doi:10.1107/S0021889812002312
"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from sfxreduce.io.files.durable import output_errors
from sfxreduce.io.geometry.crystfel import parse_geometry
from sfxreduce.io.geometry.patch import geometry_for_hits
from sfxreduce.run.detector import Detector, Sensor

__all__ = ["format_geometry", "write_event_list", "write_geometry"]

MASK_BESIDE = {"data": "mask", "slab": "slab_mask"}
"""Mask of each dataset that frames may be read from."""

# CrystFEL cannot open a list of fewer bytes.
FEWEST_LIST_BYTES = 8


def write_geometry(
    path: Path, detector: Detector, *, photon_energy_ev: float = math.nan, data: str = "data"
) -> None:
    """Write the geometry of a CXI file made by `write_cxi`; see `format_geometry`.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    _write(path, format_geometry(detector, photon_energy_ev=photon_energy_ev, data=data))


def write_event_list(path: Path, cxi_path: Path | str, n_events: int) -> None:
    """Write the list of all events of a CXI file, one ``file.cxi //0`` a line.

    Parameters
    ----------
    cxi_path : Path or str
        As CrystFEL is to open it.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = "".join(f"{cxi_path} //{event}\n" for event in range(n_events))
    if 0 < len(os.fsencode(text)) < FEWEST_LIST_BYTES:
        text = f"./{text}"
    _write(path, text)


def format_geometry(
    detector: Detector, *, photon_energy_ev: float = math.nan, data: str = "data"
) -> str:
    """Geometry of slabs, one panel below the other, as CrystFEL reads it.

    Parameters
    ----------
    detector : Detector
        What is not known of it becomes a comment. If a CrystFEL geometry file placed its panels,
        that is repeated, but for where data, mask and peaks are.
    photon_energy_ev : float
        Photon energy of all events in eV; by default every event's own is taken from the file.
    data : str
        Dataset of the slabs in ``/entry_1/data_1``.

    Examples
    --------
    >>> camera = Detector.centred("camera", (4, 6), pixel_size_m=1e-4, distance_m=0.15)
    >>> print(format_geometry(camera))
    photon_energy = /LCLS/photon_energy_eV eV
    clen = 0.15 m
    res = 10000.0
    ; adu_per_photon is not known
    data = /entry_1/data_1/data
    dim0 = %
    dim1 = ss
    dim2 = fs
    peak_list = /entry_1/result_1
    mask0_data = /entry_1/data_1/mask
    mask0_goodbits = 0x0
    mask0_badbits = 0xffffffff
    p0/min_fs = 0
    p0/max_fs = 5
    p0/min_ss = 0
    p0/max_ss = 3
    p0/corner_x = -3.0
    p0/corner_y = -2.0
    p0/fs = +1.0x +0.0y
    p0/ss = +0.0x +1.0y
    <BLANKLINE>
    """
    by_event = math.isnan(photon_energy_ev)
    energy = "/LCLS/photon_energy_eV" if by_event else _decimal(photon_energy_ev)
    if detector.crystfel:
        said = [*_said_anew(detector, energy=energy), *_places(data)]
        return geometry_for_hits(detector.crystfel, file=detector.name, said=said)
    lines = [
        f"photon_energy = {energy} eV",
        _known("clen", detector.distance_m, " m"),
        _known("res", 1 / detector.pixel_size_m),
        _known("adu_per_photon", detector.adu_per_photon),
        *_max_adu(detector),
        *_places(data),
    ]
    for number, sensor in enumerate(detector.placed()):
        # Names of panels may hold what CrystFEL reads as something else.
        lines += _panel_lines(replace(sensor, name=f"p{number}"))
    return "\n".join(lines) + "\n"


def _said_anew(detector: Detector, *, energy: str) -> list[str]:
    """Statements that a user's geometry lacks, or leaves to a file that the hits are not in."""
    found = parse_geometry(detector.crystfel, file=detector.name)
    if found.energy is not None and not found.energy.path:
        energy = _decimal(found.energy.value)
    said = [f"photon_energy = {energy} eV"]
    if found.distance is None or found.distance.path:
        offset = float(np.mean([panel.offset_m for panel in found.panels]))
        said.append(_known("clen", detector.distance_m - offset, " m"))
    if any(math.isnan(panel.gain[0]) for panel in found.panels):
        said.append(_known("adu_per_photon", detector.adu_per_photon))
    if all(math.isinf(panel.max_adu) for panel in found.panels):
        said += _max_adu(detector)
    # A shift that differs by event is in the file of the run only.
    axes = zip("xy", found.shift, strict=True)
    return said + [f"detector_shift_{axis} = 0 m" for axis, shift in axes if shift.path]


def _places(data: str) -> list[str]:
    """Where frames, peaks and mask are; CrystFEL ignores a mask that follows the first panel."""
    return [
        f"data = /entry_1/data_1/{data}",
        "dim0 = %",
        "dim1 = ss",
        "dim2 = fs",
        "peak_list = /entry_1/result_1",
        f"mask0_data = /entry_1/data_1/{MASK_BESIDE[data]}",
        "mask0_goodbits = 0x0",
        # All of them: programs have bits of their own above those of the specification.
        "mask0_badbits = 0xffffffff",
    ]


def _max_adu(detector: Detector) -> list[str]:
    """Value above which nothing is a measurement, where it is known."""
    limit = detector.saturation_adu
    return [f"max_adu = {_decimal(limit)}"] if math.isfinite(limit) else []


def _panel_lines(sensor: Sensor) -> list[str]:
    """One panel: its rows and columns in the slab, and its place in pixels from the beam."""
    return [
        f"{sensor.name}/min_fs = {sensor.columns[0]}",
        f"{sensor.name}/max_fs = {sensor.columns[1] - 1}",
        f"{sensor.name}/min_ss = {sensor.rows[0]}",
        f"{sensor.name}/max_ss = {sensor.rows[1] - 1}",
        f"{sensor.name}/corner_x = {_decimal(sensor.corner[0])}",
        f"{sensor.name}/corner_y = {_decimal(sensor.corner[1])}",
        f"{sensor.name}/fs = {_vector(sensor.fast)}",
        f"{sensor.name}/ss = {_vector(sensor.slow)}",
    ]


def _known(name: str, value: float, unit: str = "") -> str:
    """Give a line, or a comment where the value is not known."""
    return f"{name} = {_decimal(value)}{unit}" if math.isfinite(value) else f"; {name} is not known"


def _vector(step: tuple[float, float]) -> str:
    """Write a step along x and y as CrystFEL does."""
    return f"{_decimal(step[0], sign=True)}x {_decimal(step[1], sign=True)}y"


def _decimal(value: float, *, sign: bool = False) -> str:
    """Shortest decimal that reads back as the same number; CrystFEL knows no exponents here."""
    return np.format_float_positional(value + 0.0, trim="0", sign=sign)


def _write(path: Path, text: str) -> None:
    """Write a text file whole."""
    with output_errors(path):
        # Names of files come back as the bytes that they are.
        path.write_bytes(os.fsencode(text))
